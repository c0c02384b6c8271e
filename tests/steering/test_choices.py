"""Which passes that may lose are kept, by a table of speeds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from graphopt.rewriting import Pass
from graphopt.steering.choices import choose
from tests.steering.tables import Passes, speed


@dataclass(frozen=True)
class Plain(Pass):
    """Never loses."""

    name = "plain"


@dataclass(frozen=True)
class Risky(Pass):
    """May lose."""

    name = "risky"
    measured = True


@dataclass(frozen=True)
class Shy(Pass):
    """May lose, and stays out unless it is seen to gain."""

    name = "shy"
    measured = True
    unmeasured = "leave-out"


@dataclass(frozen=True)
class Hiding(Pass):
    """Keeps the runtime from a fusion."""

    name = "hiding"
    measured = True
    hides = frozenset({"com.microsoft::Fused"})


STEPS = (Plain(), Risky(), Shy(), Hiding())


def cost(**gains: float):
    """Milliseconds: 10, divided by the gain of each pass applied."""

    def of(applied: tuple[str, ...]) -> float:
        ms = 10.0
        for name in applied:
            ms /= gains.get(name, 1.0)
        return ms

    return of


def applied(candidate) -> list[str]:
    return [a.pass_name for a in candidate.applications]


@pytest.mark.parametrize(
    ("gains", "left", "decisions"),
    [
        ({"risky": 1.2, "shy": 1.1}, ["plain", "risky", "shy"], ["kept: it is faster", "kept: it is faster"]),
        ({"risky": 0.9, "shy": 1.1}, ["plain", "shy"], ["undone: it is slower", "kept: it is faster"]),
        ({"risky": 1.2, "shy": 0.5}, ["plain", "risky"], ["kept: it is faster", "undone: it is slower"]),
        ({}, ["plain", "risky"], ["kept: no difference can be measured", "undone: no difference can be measured"]),
    ],
)
def test_the_clock_decides(gains, left, decisions) -> None:
    bench = Passes(["plain", "risky", "shy"], cost(plain=1.0, **gains))
    best, choices = choose(bench, bench.build(), STEPS)
    assert applied(best) == left
    assert [f"{'kept' if c.kept else 'undone'}: {c.reason}" for c in choices] == decisions
    assert [c.pass_name for c in choices] == ["risky", "shy"]
    assert bench.told == ["trying without risky", "trying without shy"]


@pytest.mark.parametrize(
    ("usual", "small", "kept", "reason"),
    [
        (1.2, 0.8, True, "it is faster"),
        (0.8, 1.2, False, "it is slower"),
        (1.0, 1.2, True, "it is faster on small inputs"),
        (1.0, 0.8, False, "it is slower on small inputs"),
        (1.0, 1.0, True, "no difference can be measured"),
    ],
)
def test_the_usual_size_decides_and_the_small_one_where_that_does_not_tell(usual, small, kept, reason) -> None:
    bench = Passes(["risky"], cost(risky=usual), small=cost(risky=small))
    _, (choice,) = choose(bench, bench.build(), STEPS)
    assert (choice.kept, choice.reason) == (kept, reason)
    assert choice.to_dict()["shapes"] == ({"x": [1, 16]} if "small" in reason else {"x": [1, 128]})


def test_passes_that_cannot_lose_are_not_timed() -> None:
    bench = Passes(["plain"], cost(plain=0.1))
    best, choices = choose(bench, bench.build(), STEPS)
    assert (applied(best), choices, bench.raced) == (["plain"], [], [])


def test_where_the_runtime_ends_with_one_graph_nothing_is_timed() -> None:
    bench = Passes(["risky", "shy"], cost(risky=0.1, shy=9.0), alike=("risky", "shy"))
    best, choices = choose(bench, bench.build(), STEPS)
    assert bench.raced == []
    assert applied(best) == ["risky"]
    assert all("same graph" in c.reason and c.speed is None for c in choices)
    assert choices[0].to_dict() | {"ratio": None} == choices[0].to_dict()


@pytest.mark.parametrize(("gain", "left"), [(1.0, []), (1.2, ["risky"]), (0.8, [])])
def test_more_nodes_must_measure_faster(gain: float, left: list[str]) -> None:
    bench = Passes(["risky"], cost(risky=gain), nodes=lambda names: 9 if "risky" in names else 6)
    best, (choice,) = choose(bench, bench.build(), STEPS)
    assert applied(best) == left
    assert ("3 nodes more" in choice.text()) == bool(left)
    assert (choice.to_dict()["nodes_with"], choice.to_dict()["nodes_without"]) == (9, 6)


@pytest.mark.parametrize(("spread", "left"), [(0.01, []), (0.2, ["risky"])])
def test_more_nodes_are_kept_where_noise_hides_what_they_gain(spread: float, left: list[str]) -> None:
    class Noisy(Passes):
        def race(self, *args, **small):
            return speed(1.005, spread)

    bench = Noisy(["risky"], cost(), nodes=lambda names: 9 if "risky" in names else 6)
    best, _ = choose(bench, bench.build(), STEPS)
    assert applied(best) == left


def test_fewer_nodes_settle_what_the_clock_cannot() -> None:
    bench = Passes(["shy"], cost(), nodes=lambda names: 2 if "shy" in names else 6)
    best, (choice,) = choose(bench, bench.build(), STEPS)
    assert applied(best) == ["shy"]
    assert choice.to_dict()["decision"] == "kept"


def test_a_pass_is_judged_beside_the_best_so_far() -> None:
    bench = Passes(["risky", "shy"], cost(risky=0.5, shy=2.0))
    choose(bench, bench.build(), STEPS)
    assert bench.raced == [(("shy",), ("risky", "shy"))] * 2 + [((), ("shy",))] * 2


def test_a_figure_against_the_passes_own_word_must_hold_twice() -> None:
    class Lucky(Passes):
        def race(self, *args, **small):
            found = super().race(*args, **small)
            return speed(0.9) if len(self.raced) == 1 else found

    bench = Lucky(["risky"], cost())
    best, (choice,) = choose(bench, bench.build(), STEPS)
    assert applied(best) == ["risky"]
    assert choice.reason == "no difference can be measured"


def test_what_it_hides_from_the_runtime_is_told() -> None:
    fused = {"MatMul": 3, "com.microsoft::BiasGelu": 12}
    bench = Passes(["risky"], cost(risky=0.9), operators=lambda names: {"MatMul": 3, "Gemm": 12} if names else fused)
    _, (choice,) = choose(bench, bench.build(), STEPS)
    assert choice.to_dict()["runtime_operators"] == {"Gemm": [12, 0], "com.microsoft::BiasGelu": [0, 12]}
    assert choice.text().endswith("; it hides patterns from the runtime's own fusions: BiasGelu 12 to 0")


@pytest.mark.parametrize(("fused", "gain", "left"), [(12, 1.2, ["hiding"]), (12, 0.8, []), (0, 1.2, [])])
def test_what_hides_nothing_from_the_runtime_is_undone_without_a_clock(fused: int, gain: float, left: list[str]) -> None:
    bench = Passes(["hiding"], cost(hiding=gain), operators=lambda names: {"Sum": 12} if names else {"com.microsoft::Fused": fused})
    best, (choice,) = choose(bench, bench.build(), STEPS)
    assert applied(best) == left
    assert bool(bench.raced) == bool(fused)
    assert (choice.reason == "the runtime makes no Fused without it either") == (not fused)


def test_when_time_is_over_the_passes_own_word_counts() -> None:
    ticks = iter(range(0, 1000, 100))
    bench = Passes(["risky", "plain"], cost(risky=0.5))
    best, (choice,) = choose(bench, bench.build(), STEPS, seconds=30, clock=lambda: float(next(ticks)))
    assert applied(best) == ["risky", "plain"]
    assert choice.reason == "no time was left to measure it"
    assert bench.raced == []
