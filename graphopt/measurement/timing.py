"""Something ready to be timed: what to call, and the batch of calls that is long enough to time."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from typing import Any

from graphopt import runtime
from graphopt.settings import Settings

# Seconds of one timed batch: long beside the clock and a scheduler's tick, short beside drifts of clock speed and load.
BATCH_S = 0.03
# A run longer than this brings caches to its own state within itself, and needs no untimed run before it.
_LONG_RUN_S = 0.05
_SLOW_RUN_S = 0.5


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector off: its pauses would fall on one model of a pair."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Timed:
    """Something to run, warmed up, with the number of runs that makes a batch."""

    def __init__(self, call: Callable[[], Any], first: Callable[[], Any] | None = None, session_s: float | None = None):
        """call: runs it once; first: the same for the first time, where that is to be checked; session_s: seconds that
        making it took, None where nothing was made. Raises what the first run raises."""
        self.session_s = session_s
        # The first run checks the feeds, allocates and picks kernels. Its error, if any, is one clear line.
        start = time.perf_counter()
        (first or call)()
        run_s = time.perf_counter() - start
        self._call = call
        if run_s < _SLOW_RUN_S:  # of a run of seconds the first is a good enough guess, and a second one dear
            run_s = self._seconds(1)
        if run_s < _LONG_RUN_S:
            run_s = min(run_s, self._seconds(max(1, min(50, int(BATCH_S / 3 / max(run_s, 1e-6))))))
        self.run_s = run_s
        self.runs = max(1, math.ceil(BATCH_S / max(run_s, 1e-6)))

    def batch(self) -> float:
        """Seconds a run, the mean over one batch."""
        if self.run_s < _LONG_RUN_S:
            self._call()  # the model timed before this one left the caches full of its own data
        return self._seconds(self.runs)

    @property
    def batch_s(self) -> float:
        """Seconds that a call of `batch` is expected to take."""
        return self.run_s * (self.runs + (self.run_s < _LONG_RUN_S))

    def _seconds(self, runs: int) -> float:
        call = self._call
        start = time.perf_counter()
        for _ in range(runs):
            call()
        return (time.perf_counter() - start) / runs


def timed_session(
    model: str | PathLike | bytes, feeds: Mapping[str, Any], *, threads: int, provider: str, settings: Settings | None = None
) -> Timed:
    """A fresh session on a model with its feeds in place. settings: of the session, instead of a plain one on `threads`.

    Raises what `runtime.session` and `runtime.run` raise.
    """
    start = time.perf_counter()
    threads = threads if settings is None else settings.threads
    session = runtime.session(model, threads=threads, provider=provider, settings=settings)
    session_s = time.perf_counter() - start
    # The caller is made before the first run: with it the session is all that a batch needs.
    return Timed(_caller(session, feeds), lambda: runtime.run(session, feeds), session_s)


def _caller(session, feeds: Mapping[str, Any]) -> Callable[[], Any]:
    """What runs the session once. On CUDA inputs and outputs stay on the device: copies to the host are not the model's time."""
    feeds = dict(feeds)
    plain = all(v.type.startswith("tensor(") and "string" not in v.type for v in (*session.get_inputs(), *session.get_outputs()))
    on_gpu = session.get_providers()[0] in (runtime.CUDA, "TensorrtExecutionProvider")
    if not (on_gpu and plain):
        return lambda: session.run(None, feeds)
    import numpy as np
    import onnxruntime as ort

    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", 0)
    binding.synchronize_inputs()

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()  # kernels are queued: without this the clock would time the queueing

    return call
