"""How fast a model is, and how fast beside another: medians from interleaved batches in rounds of fresh sessions.

Absolute times drift with clock speed and other load; the ratio of two batches taken one right after the other does not.
So the pair is the unit: a batch of each model, the order swapped from pair to pair. A session also has luck of its own
(where its buffers lie), which all its pairs share: hence rounds, each with fresh sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from statistics import median
from typing import Any

from graphopt import runtime
from graphopt.measurement import interval
from graphopt.measurement.runtime_graph import same_runtime_graph
from graphopt.measurement.timing import Timed, no_collection
from graphopt.settings import Settings

__all__ = ["Latency", "Speed", "bench", "compare", "same_runtime_graph"]

# Below 1 - margin the whole interval must lie for a result to count as slower.
_MARGIN = 0.005
# The same where there were too few pairs for an interval of 90 %: a gap that noise between two batches hardly makes.
_WIDE_MARGIN = 0.10
_ROUNDS = 4  # rounds at the least, time allowing
_DECIDING_ROUNDS = 2  # the same where the question is only on which side of a ratio the figure lies
_ROUND_PAIRS = 8
_FEW = 3  # pairs (batches) taken even past `max_seconds`, up to twice that time

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Speed:
    """How fast model b is beside model a.

    ratio: median over the pairs of a's time over b's (above 1: b is faster). low, high: a confidence interval of it,
    at level `confidence` (0.95 from six pairs on; see `interval.of_median`). before_ms, after_ms: median milliseconds
    of one run of a and b. session_before_ms, session_after_ms: median milliseconds of making a session.
    """

    ratio: float
    low: float
    high: float
    before_ms: float
    after_ms: float
    pairs: int
    confidence: float
    session_before_ms: float
    session_after_ms: float
    threads: int
    provider: str

    @property
    def slower(self) -> bool:
        """b is slower than a beyond the noise."""
        return self.high < 1 - self._margin

    @property
    def faster(self) -> bool:
        """b is faster than a beyond the noise."""
        return self.low > 1 + self._margin

    @property
    def _margin(self) -> float:
        return _MARGIN if self.confidence >= 0.9 else _WIDE_MARGIN

    def to_dict(self) -> dict:
        return asdict(self) | {"slower": self.slower, "faster": self.faster}


@dataclass(frozen=True)
class Latency:
    """How fast one model is.

    ms: median milliseconds of one run over the batches. low, high: a confidence interval of it. runs: timed runs in
    all. session_ms: median milliseconds of making a session.
    """

    ms: float
    low: float
    high: float
    runs: int
    confidence: float
    session_ms: float
    threads: int
    provider: str

    def to_dict(self) -> dict:
        return asdict(self)


def compare(
    a: str | PathLike | bytes,
    b: str | PathLike | bytes,
    feeds: Mapping[str, Any],
    *,
    threads: int = 0,
    provider: str = "cpu",
    pairs: int = 400,
    min_seconds: float = 1.0,
    max_seconds: float = 15.0,
    precision: float = 0.01,
    decide: float | None = None,
    settings: tuple[Settings | None, Settings | None] = (None, None),
    progress: Progress | None = None,
) -> Speed:
    """The speed of model b beside model a, both under all of the runtime's own optimizations, on the same feeds.

    pairs: pairs at the most. min_seconds, max_seconds: bounds of the time taken, sessions included; three pairs are
    taken even beyond the upper bound, up to twice of it, and one pair in any case. Between the bounds it stops when
    the interval is within `precision` of the ratio on either side, or within a tenth of the gain or loss.
    decide: a ratio; it stops too, from the second round on, when the whole interval lies on one side of it.
    settings: of the sessions of a and of b, where they are not plain ones; their threads count then.
    progress: called with (pairs taken, pairs at the most).

    Raises InputError where a model or the feeds do not run, ProviderError where the provider does not.
    """
    limits = Limits(pairs, min_seconds, max_seconds, precision, decide)
    took = _take((a, b), feeds, threads, provider, limits, progress, settings)
    ratio, low, high, confidence = took.interval
    times_a, times_b = took.times
    return Speed(
        ratio=ratio,
        low=low,
        high=high,
        before_ms=median(times_a) * 1e3,
        after_ms=median(times_b) * 1e3,
        pairs=len(times_a),
        confidence=confidence,
        session_before_ms=median(took.session_s[0]) * 1e3,
        session_after_ms=median(took.session_s[1]) * 1e3,
        threads=threads or runtime.usable_cores(),
        provider=runtime.short_name(runtime.resolve_provider(provider)),
    )


def bench(
    model: str | PathLike | bytes,
    feeds: Mapping[str, Any],
    *,
    threads: int = 0,
    provider: str = "cpu",
    batches: int = 400,
    min_seconds: float = 0.5,
    max_seconds: float = 8.0,
    precision: float = 0.01,
    progress: Progress | None = None,
) -> Latency:
    """The latency of one model under all of the runtime's own optimizations. Options and errors as for `compare`.

    Unlike a ratio of pairs it moves with whatever else the machine does: to compare two models use `compare`.
    """
    took = _take((model,), feeds, threads, provider, Limits(batches, min_seconds, max_seconds, precision), progress)
    ms, low, high, confidence = took.interval
    return Latency(
        ms=ms * 1e3,
        low=low * 1e3,
        high=high * 1e3,
        runs=took.runs,
        confidence=confidence,
        session_ms=median(took.session_s[0]) * 1e3,
        threads=threads or runtime.usable_cores(),
        provider=runtime.short_name(runtime.resolve_provider(provider)),
    )


@dataclass(frozen=True)
class Limits:
    """When to stop: see `compare`."""

    most: int
    min_seconds: float
    max_seconds: float
    precision: float
    decide: float | None = None


class _Taken:
    """What was measured so far of one or two models."""

    def __init__(self, models: int):
        self.times: list[list[float]] = [[] for _ in range(models)]  # seconds a run, one value a batch
        self.session_s: list[list[float]] = [[] for _ in range(models)]
        self.rounds: list[list[float]] = []  # by round: ratios of two models, seconds of one
        self.runs = 0

    @property
    def count(self) -> int:
        return len(self.times[0])

    @property
    def interval(self) -> tuple[float, float, float, float]:
        return interval.of_median(self.rounds)

    def settled(self, limits: Limits) -> bool:
        """The interval is tight enough: within the precision, or a tenth of what the second model gained or lost."""
        middle, low, high, confidence = self.interval
        precision = limits.precision
        if len(self.times) == 2:
            precision = max(precision, 0.1 * abs(middle - 1) / max(middle, 1.0))
        return confidence >= interval.LEVEL and max(middle - low, high - middle) <= precision * middle

    def decided(self, limits: Limits) -> bool:
        """The interval lies on one side of the ratio that is the question."""
        if limits.decide is None or len(self.rounds) < _DECIDING_ROUNDS:
            return False
        _, low, high, confidence = self.interval
        return confidence >= interval.LEVEL and not low <= limits.decide <= high


def _take(models, feeds, threads, provider, limits: Limits, progress, settings=(None, None)) -> _Taken:
    """Takes batches of the models in turn, in rounds of fresh sessions, until the figure is settled or time is up."""
    if limits.most < 1:
        raise ValueError(f"at least one pair must be taken, not {limits.most}")
    took = _Taken(len(models))
    start = time.perf_counter()
    while took.count < limits.most:
        round_start = time.perf_counter()
        order = list(range(len(models)))
        if len(took.rounds) % 2:
            order.reverse()
        ready: dict[int, Timed] = {}
        for i in order:
            ready[i] = Timed(models[i], feeds, threads=threads, provider=provider, settings=settings[i])
            took.session_s[i].append(ready[i].session_s)
        setup_s = time.perf_counter() - round_start
        pair_s = sum(t.batch_s for t in ready.values())
        took.rounds.append([])
        _round(took, ready, limits, start, setup_s, pair_s, progress)
        ready.clear()  # free the sessions before the next ones are made: two of each would double the memory
        elapsed = time.perf_counter() - start
        if elapsed >= limits.min_seconds and (took.decided(limits) or (len(took.rounds) >= _ROUNDS and took.settled(limits))):
            break
        if elapsed + setup_s + pair_s >= limits.max_seconds:
            break
    # The process's first sessions pay for loading libraries and reading files; later ones are what a user sees again.
    took.session_s = [s[1:] if len(s) > 1 else s for s in took.session_s]
    return took


def _round(took, ready, limits: Limits, start, setup_s, pair_s, progress) -> None:
    """One round: batches of each model in turn, the order swapped every time, until the round's share is taken.

    ready: Timed by the place of its model. setup_s, pair_s: seconds that the sessions took and that a pair will take.
    """
    current = took.rounds[-1]
    with no_collection():
        while took.count < limits.most:
            order = sorted(ready, reverse=(len(current) + len(took.rounds)) % 2 == 0)
            seconds = {i: ready[i].batch() for i in order}
            for i, s in seconds.items():
                took.times[i].append(s)
                took.runs += ready[i].runs
            current.append(seconds[0] / seconds[1] if len(seconds) == 2 else seconds[0])
            if progress:
                progress(took.count, limits.most)
            elapsed = time.perf_counter() - start
            if elapsed + pair_s >= (limits.max_seconds if took.count >= _FEW else 2 * limits.max_seconds):
                return
            if len(current) >= _ROUND_PAIRS or pair_s * len(current) >= limits.max_seconds / (2 * _ROUNDS):
                # A new round costs new sessions. Where those would eat the time left, this one goes on instead.
                affordable = setup_s + pair_s <= 0.3 * (limits.max_seconds - elapsed)
                if affordable or (elapsed >= limits.min_seconds and took.settled(limits)):
                    return
