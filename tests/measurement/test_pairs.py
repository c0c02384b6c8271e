"""Paired timing tells apart what differs, and does not what is the same."""

import dataclasses
import gc
import time

import numpy as np
import pytest

from graphopt.errors import InputError
from graphopt.measurement import Speed, Timed, bench, compare, pairs, race, timing
from graphopt.settings import Settings

pytestmark = pytest.mark.usefixtures("cpu_clock")
SPEED = Speed(1.2, 1.1, 1.3, 12.0, 10.0, 40, 0.95, 5.0, 4.0, 2, "cpu")


def test_a_model_beside_itself(make, feeds):
    path = make("a", 2)
    calls = []
    speed = compare(path, path, feeds, threads=1, max_seconds=5, progress=lambda done, total: calls.append((done, total)))
    assert speed.low <= speed.ratio <= speed.high
    # Wide enough for a machine that others load, far too narrow for a harness that favours one side.
    assert 0.9 < speed.ratio < 1.1
    assert speed.low < 1.02 and speed.high > 0.98
    assert speed.pairs >= 20 and speed.confidence == 0.95
    assert calls == [(i, 400) for i in range(1, speed.pairs + 1)]
    assert speed.session_before_ms > 0 and speed.session_after_ms > 0
    assert (speed.threads, speed.provider) == (1, "cpu")


def test_four_times_the_work(make, feeds):
    small, large = make("a", 2), make("b", 8)
    slower = compare(small, large, feeds, threads=1, max_seconds=4)
    assert 0.15 < slower.ratio < 0.45
    assert slower.high < 0.6 and slower.slower and not slower.faster
    assert slower.before_ms < slower.after_ms
    faster = compare(large, small, feeds, threads=1, max_seconds=4)
    assert faster.ratio > 2 and faster.faster and not faster.slower


def test_time_is_bounded(make, feeds):
    path = make("a", 1)
    start = time.process_time()
    speed = compare(path, path, feeds, threads=1, max_seconds=0.6, precision=1e-9)
    assert time.process_time() - start < 3
    assert speed.pairs >= 3


def test_runs_longer_than_the_bound_still_give_a_figure(make):
    path = make("slow", 12, 1024)
    feeds = {"x": np.ones((512, 1024), np.float32)}
    speed = compare(path, path, feeds, threads=1, max_seconds=0.01)
    assert 1 <= speed.pairs <= 3
    assert speed.confidence <= 0.75
    assert speed.low <= speed.ratio <= speed.high


def test_at_most_so_many_pairs(make, feeds):
    path = make("a", 1)
    assert compare(path, path, feeds, threads=1, pairs=2).pairs == 2
    with pytest.raises(ValueError, match="at least one pair"):
        compare(path, path, feeds, pairs=0)


def test_garbage_collection_is_back_on_even_after_an_error(make, feeds):
    path = make("a", 1)

    def fails(done, total):
        assert not gc.isenabled()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(path, path, feeds, progress=fails)
    assert gc.isenabled()


def test_errors_come_through(make, feeds, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        compare(make("a", 1), tmp_path / "no.onnx", feeds)
    with pytest.raises(InputError, match="no value for input 'x'"):
        bench(make("a", 1), {})


def test_the_order_is_swapped_every_pair_and_every_round():
    """With a machine whose second batch of a pair is always twice as slow, a model equals itself all the same."""
    made = []

    class Fake:
        session_s, run_s, runs, batch_s = 0.001, 0.01, 1, 0.01

        def __init__(self, name):
            made.append(name)

        def batch(self):
            Fake.batches += 1
            return 0.01 * (1 + (Fake.batches - 1) % 2)

    Fake.batches = 0
    took = pairs._take([lambda: Fake("a"), lambda: Fake("b")], pairs.Limits(64, 1e9, 1e9, 0.01), None)
    assert [sorted(a / b for a, b in r) for r in took.rounds] == [[0.5] * 4 + [2.0] * 4] * 8
    assert made == ["a", "b", "b", "a"] * 4


def test_slower_and_faster_need_the_whole_interval():
    at = lambda low, high, confidence=0.95: dataclasses.replace(SPEED, low=low, high=high, confidence=confidence)  # noqa: E731
    assert at(0.90, 0.99).slower and not at(0.90, 0.999).slower and not at(0.90, 1.01).slower
    assert at(1.01, 1.10).faster and not at(1.001, 1.10).faster
    # Too few pairs: only a wide gap counts.
    assert not at(0.92, 0.95, 0.75).slower and at(0.5, 0.85, 0.75).slower


def test_to_dict_has_the_keys_of_the_contract():
    made = SPEED.to_dict()
    assert {"ratio", "low", "high", "before_ms", "after_ms", "pairs"} <= made.keys()
    assert made["ratio"] == 1.2 and made["faster"] is True and made["slower"] is False


def test_a_question_that_is_decided_is_not_measured_further(make, feeds):
    small, large = make("a", 2), make("b", 8)
    speed = compare(large, small, feeds, threads=1, max_seconds=30, precision=1e-9, decide=1.0)
    assert speed.low > 1.0 and speed.pairs < 100


def test_settings_of_either_session(make, feeds, monkeypatch):
    seen = []
    real = timing.runtime.session
    monkeypatch.setattr(timing.runtime, "session", lambda model, **kwargs: seen.append(kwargs) or real(model, **kwargs))
    path, one = make("a", 1), Settings(disabled=("MatMulAddFusion",), threads=2)
    compare(path, path, feeds, threads=1, pairs=1, settings=(None, one))
    assert [(k["threads"], k["settings"]) for k in seen] == [(1, None), (2, one)]


def test_latency_of_one_model(make, feeds):
    small = bench(make("a", 2), feeds, threads=1, max_seconds=2)
    large = bench(make("b", 16), feeds, threads=1, max_seconds=2)
    for latency in (small, large):
        assert 0 < latency.low <= latency.ms <= latency.high
        assert latency.runs >= 3 and latency.session_ms > 0
    assert large.ms > 3 * small.ms


def test_on_cuda(make, feeds):
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs a build of ONNX Runtime with CUDA")
    speed = compare(make("a", 2), make("b", 64), feeds, provider="cuda", max_seconds=5)
    assert speed.provider == "cuda" and speed.slower


def test_several_contenders_beside_the_first():
    def busy(seconds):
        def call():
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass

        return lambda: Timed(call)

    twice, half = race([busy(0.002), busy(0.001), busy(0.004)], threads=1, max_seconds=3)
    assert twice.faster and 1.7 < twice.ratio < 2.3 and half.slower and 0.4 < half.ratio < 0.6
    assert twice.pairs == half.pairs and twice.before_ms == half.before_ms
    assert twice.session_before_ms is None and twice.session_after_ms is None
