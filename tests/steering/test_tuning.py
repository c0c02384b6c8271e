"""Which settings of the session are found, by a table of speeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.settings import Settings
from graphopt.steering.tuning import describe, tune
from tests.steering.tables import SessionTable, speed

PATH = Path("model.onnx")
SKIP = "SkipLayerNormFusion"


def search(bench: SessionTable, *, threads: int = 1, cores: int = 4, run_ms: float = 5.0, **kwargs):
    return tune(bench, PATH, threads=threads, cores=cores, run_ms=run_ms, **kwargs)


def test_an_optimizer_that_loses_is_switched_off() -> None:
    bench = SessionTable(lambda s: 9.0 if SKIP in s.disabled else 10.0, ("ConstantFolding", SKIP, "ConstantSharing"))
    found = search(bench)
    assert found.settings == Settings(disabled=(SKIP,), threads=1)
    assert found.figures()["ratio"] == pytest.approx(10 / 9)
    assert bench.raced[0][1].disabled == (SKIP,)  # the one that is known to lose is tried first
    assert not any("ConstantSharing" in b.disabled for _, b in bench.raced)


def test_gains_add_up() -> None:
    bench = SessionTable(lambda s: 10.0 - ("A" in s.disabled) - ("B" in s.disabled) + 3 * ("C" in s.disabled), ("A", "C", "B"))
    assert search(bench).settings.disabled == ("A", "B")


@pytest.mark.parametrize("gain", [1.0, 1.008, 1.015])
def test_what_gains_too_little_is_not_worth_a_file(gain: float) -> None:
    bench = SessionTable(lambda s: 10.0 / gain if s != Settings(threads=1) else 10.0, ("A",))
    assert search(bench) is None


def test_the_winner_is_measured_again_beside_a_plain_session() -> None:
    class Flattering(SessionTable):
        def race_settings(self, path, a, b, seconds, decide=None):
            found = super().race_settings(path, a, b, seconds, decide)
            return found if decide is not None else super().race_settings(path, a, a, seconds)

    bench = Flattering(lambda s: 8.0 if s.disabled else 10.0, ("A",))
    assert search(bench) is None
    assert bench.raced[-2] == (Settings(threads=1), Settings(disabled=("A",), threads=1))


@pytest.mark.parametrize(("real", "taken"), [(10.0, None), (8.0, ("A",))])
def test_a_gain_that_drowns_in_noise_is_looked_at_again(real: float, taken) -> None:
    class Noisy(SessionTable):
        def race_settings(self, path, a, b, seconds, decide=None):
            found = super().race_settings(path, a, b, seconds, decide)
            return speed(1.2, 0.25) if len(self.raced) == 1 else found

    bench = Noisy(lambda s: real if s.disabled else 10.0, ("A",))
    found = search(bench)
    assert (None if found is None else found.settings.disabled) == taken
    assert [b.disabled for _, b in bench.raced[:2]] == [("A",), ("A",)]


@pytest.mark.parametrize(("threads", "cores", "best"), [(8, 4, 2), (0, 8, 2), (1, 8, None), (2, 2, None), (4, 4, 2)])
def test_fewer_threads_are_tried_by_halves(threads: int, cores: int, best: int | None) -> None:
    bench = SessionTable(lambda s: 5.0 if s.threads == 2 else 20.0 if s.threads == 1 else 10.0 - (s.threads or cores) / -8)
    found = search(bench, threads=threads, cores=cores)
    assert (None if found is None else found.settings.threads) == best
    assert all(b.threads <= (threads or cores) for _, b in bench.raced)


def test_one_thread_cannot_spin() -> None:
    bench = SessionTable(lambda s: 10.0)
    search(bench, threads=1)
    assert bench.raced == []
    search(bench, threads=2)
    assert [b.config for _, b in bench.raced] == [{}, {"session.intra_op.allow_spinning": "0"}]


def test_one_final_graph_is_timed_once() -> None:
    # Level "extended" leaves out what NchwcTransformer does; A makes no difference to the graph.
    graph = lambda s: ("plain" if s.level == "all" and "NchwcTransformer" not in s.disabled else s.level.replace("all", "extended"))  # noqa: E731
    bench = SessionTable(lambda s: 10.0, ("A", "NchwcTransformer"), graph)
    search(bench)
    assert [(b.level, b.disabled) for _, b in bench.raced] == [("all", ("NchwcTransformer",)), ("basic", ())]


def test_a_level_is_a_choice() -> None:
    bench = SessionTable(lambda s: {"all": 10.0, "extended": 8.0, "basic": 12.0}[s.level], ("A",))
    assert search(bench).settings == Settings("extended", (), 1)


def test_where_threads_mean_nothing_they_are_let_be() -> None:
    bench = SessionTable(lambda s: 1.0, ("A",))
    search(bench, threads=8, with_threads=False)
    assert all(b.threads == 8 and not b.config for _, b in bench.raced)


def test_time_is_bounded() -> None:
    now = [0.0]

    class Slow(SessionTable):
        def race_settings(self, path, a, b, seconds, decide=None):
            now[0] += seconds
            return super().race_settings(path, a, b, seconds, decide)

    bench = Slow(lambda s: 10.0 / (1 + len(s.disabled)), tuple(f"O{i}" for i in range(99)))
    assert search(bench, run_ms=0.01, clock=lambda: now[0]) is not None
    assert now[0] <= 6.1
    now[0] = 0.0
    search(bench, run_ms=500, clock=lambda: now[0])
    assert 15 <= now[0] <= 20.1
    now[0] = 0.0
    search(bench, run_ms=0.01, session_ms=400, clock=lambda: now[0])
    assert 9 <= now[0] <= 13.1
    bench.raced.clear()
    assert search(bench, run_ms=2000) is None
    assert bench.raced == []


def test_in_words() -> None:
    settings = Settings("extended", ("A", "B"), 1, {"session.intra_op.allow_spinning": "0"})
    words = "A, B switched off, optimization level extended, 1 thread, intra_op.allow_spinning = 0"
    assert describe(settings, Settings(threads=2)) == words
