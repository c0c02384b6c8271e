"""Which pass is blamed for a slower result, by a table of speeds."""

from __future__ import annotations

import pytest

from graphopt.steering.neverslower import without_slowdown
from tests.steering.tables import Passes


def test_what_is_not_slower_is_left_alone() -> None:
    bench = Passes(["a", "b"], lambda applied: 8.0)
    found = without_slowdown(bench, bench.build())
    assert (found.culprits, bench.raced) == ([], [])
    assert found.speed["ratio"] == 1.25


def test_the_pass_without_which_it_is_fastest_goes() -> None:
    cost = {("a", "b", "c"): 20.0, ("a", "b"): 19.0, ("a", "c"): 9.0, ("b", "c"): 18.0}
    bench = Passes(["a", "b", "c"], cost.__getitem__)
    found = without_slowdown(bench, bench.build())
    assert [c.pass_name for c in found.culprits] == ["b"]
    assert "0.500x" in found.culprits[0].reason
    assert found.speed["faster"]


def test_a_pass_whose_clutter_a_later_one_clears_is_not_blamed() -> None:
    """The prefix (clutter,) is slow, and so is all of it; the last pass is at fault all the same."""
    cost = {(): 10.0, ("clutter",): 30.0, ("clutter", "clean"): 8.0, ("clutter", "clean", "bad"): 15.0, ("clean", "bad"): 16.0}
    cost |= {("clutter", "bad"): 31.0}
    bench = Passes(["clutter", "clean", "bad"], cost.__getitem__)
    found = without_slowdown(bench, bench.build())
    assert [c.pass_name for c in found.culprits] == ["bad"]


def test_equal_final_graphs_are_not_timed() -> None:
    bench = Passes(["a", "bad"], lambda applied: 20.0 if "bad" in applied else 10.0, alike=("a",))
    without_slowdown(bench, bench.build())
    assert bench.raced == [(("a",), ("a", "bad"))]


def test_two_culprits() -> None:
    bench = Passes(["a", "b", "c"], lambda applied: 9.0 * 2 ** (len({"a", "c"} & set(applied))))
    found = without_slowdown(bench, bench.build())
    assert {c.pass_name for c in found.culprits} == {"a", "c"}
    assert [a.pass_name for a in found.candidate.applications] == ["b"]


def test_with_nobody_to_blame_the_original_is_shipped() -> None:
    bench = Passes(["a", "b"], lambda applied: 20.0 if applied else 10.0)
    found = without_slowdown(bench, bench.build())
    assert {c.pass_name for c in found.culprits} == {"a", "b"}
    assert not found.candidate.changed
    assert found.speed is None


def test_what_makes_it_smaller_stays_and_is_told_of() -> None:
    bench = Passes(["a", "small"], lambda applied: 12.0 if "small" in applied else 9.0)
    found = without_slowdown(bench, bench.build(), keep=frozenset({"small"}))
    assert (found.culprits, [a.pass_name for a in found.candidate.applications]) == ([], ["a", "small"])
    assert found.speed["ratio"] == pytest.approx(10 / 12)
    assert found.loss.startswith("the result is slower: 0.833x")
    assert found.loss.endswith("small is there to make it smaller")


def test_beside_what_makes_it_smaller_others_are_blamed() -> None:
    bench = Passes(["bad", "small"], lambda applied: 9.0 + 8.0 * ("bad" in applied) + 3.0 * ("small" in applied), small=lambda applied: 5.0)
    found = without_slowdown(bench, bench.build(), keep=frozenset({"small"}))
    assert [c.pass_name for c in found.culprits] == ["bad"]
    assert [a.pass_name for a in found.candidate.applications] == ["small"]
    assert found.speed["ratio"] == pytest.approx(10 / 12)
    assert found.speed["smaller"]["shapes"] == {"x": [1, 16]}


def test_small_inputs_are_measured_too() -> None:
    bench = Passes(["a"], lambda applied: 8.0, small=lambda applied: 5.0)
    found = without_slowdown(bench, bench.build())
    assert (found.speed["shapes"], found.speed["ratio"]) == ({"x": [1, 128]}, 1.25)
    assert (found.speed["smaller"]["shapes"], found.speed["smaller"]["ratio"]) == ({"x": [1, 16]}, 2.0)
    assert not found.culprits and not found.loss


@pytest.mark.parametrize("gain", [1.0, 1.2])
def test_what_makes_small_inputs_slower_goes_unless_it_gains_at_the_usual_size(gain: float) -> None:
    bench = Passes(
        ["a", "bad"],
        lambda applied: 9.0 / (gain if "bad" in applied else 1.0),
        small=lambda applied: 20.0 if "bad" in applied else 10.0,
    )
    found = without_slowdown(bench, bench.build())
    assert [c.pass_name for c in found.culprits] == (["bad"] if gain == 1.0 else [])
    assert ("bad" in found.candidate.hold.passes) == (gain == 1.0)
    assert found.speed["smaller"]["slower"] == (gain != 1.0)
    assert found.loss == ("" if gain == 1.0 else "on small inputs (x [1, 16]) the result is slower: 0.500x (0.496 to 0.504)")


def test_small_inputs_that_nobody_is_to_blame_for_are_told() -> None:
    bench = Passes(["a", "b"], lambda applied: 9.0, small=lambda applied: 20.0 if applied else 10.0)
    found = without_slowdown(bench, bench.build())
    assert not found.culprits and "slower: 0.500x" in found.loss
