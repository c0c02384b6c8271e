"""How fast a model is, and how fast beside others: medians from interleaved batches in rounds of fresh sessions.

Absolute times drift with clock speed and other load; the ratio of two batches taken one right after the other does not.
So the pair is the unit: a batch of each model, the order swapped from pair to pair. A session also has luck of its own
(where its buffers lie), which all its pairs share: hence rounds, each with fresh sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from statistics import median
from typing import Any

from graphopt import runtime
from graphopt.measurement import interval
from graphopt.measurement.runtime_graph import same_runtime_graph
from graphopt.measurement.timing import Timed, no_collection, timed_session
from graphopt.settings import Settings

__all__ = ["Contender", "Latency", "Speed", "bench", "compare", "race", "same_runtime_graph"]

# Below 1 - margin the whole interval must lie for a result to count as slower.
_MARGIN = 0.005
# The same where there were too few pairs for an interval of 90 %: a gap that noise between two batches hardly makes.
_WIDE_MARGIN = 0.10
_ROUNDS = 4  # rounds at the least, time allowing
_DECIDING_ROUNDS = 2  # the same where the question is only on which side of a ratio the figure lies
_ROUND_PAIRS = 8
_FEW = 3  # pairs (batches) taken even past `max_seconds`, up to twice that time

Progress = Callable[[int, int], None]
#: Makes something ready to be timed; called once a round.
Contender = Callable[[], Timed]


@dataclass(frozen=True)
class Speed:
    """How fast model b is beside model a.

    ratio: median over the pairs of a's time over b's (above 1: b is faster). low, high: a confidence interval of it,
    at level `confidence` (0.95 from six pairs on; see `interval.of_median`). before_ms, after_ms: median milliseconds
    of one run of a and b. session_before_ms, session_after_ms: median milliseconds of making a session, None for what
    needs none.
    """

    ratio: float
    low: float
    high: float
    before_ms: float
    after_ms: float
    pairs: int
    confidence: float
    session_before_ms: float | None
    session_after_ms: float | None
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
    both = [_on(model, feeds, threads, provider, one) for model, one in zip((a, b), settings, strict=True)]
    (speed,) = race(
        both, threads=threads, provider=provider, pairs=pairs, min_seconds=min_seconds, max_seconds=max_seconds, precision=precision,
        decide=decide, progress=progress,
    )  # fmt: skip
    return speed


def race(
    contenders: Sequence[Contender],
    *,
    threads: int = 0,
    provider: str = "cpu",
    pairs: int = 400,
    min_seconds: float = 1.0,
    max_seconds: float = 15.0,
    precision: float = 0.01,
    decide: float | None = None,
    progress: Progress | None = None,
) -> list[Speed]:
    """The speeds of all contenders but the first, each beside the first, from batches of all of them in turn.

    threads, provider: what they run on, for the record. Other options as for `compare`; it stops when every speed is
    settled, or decided. Raises what making or running a contender raises.
    """
    took = _take(contenders, Limits(pairs, min_seconds, max_seconds, precision, decide), progress)
    made = [None if None in seconds else median(seconds) * 1e3 for seconds in took.session_s]
    speeds = []
    for i in range(1, len(contenders)):
        ratio, low, high, confidence = took.interval(i)
        speeds.append(Speed(
            ratio=ratio, low=low, high=high, confidence=confidence, pairs=took.count, before_ms=median(took.times[0]) * 1e3,
            after_ms=median(took.times[i]) * 1e3, session_before_ms=made[0], session_after_ms=made[i],
            threads=threads or runtime.usable_cores(), provider=runtime.short_name(runtime.resolve_provider(provider)),
        ))  # fmt: skip
    return speeds


def _on(
    model: str | PathLike | bytes, feeds: Mapping[str, Any], threads: int, provider: str, settings: Settings | None = None
) -> Contender:
    return lambda: timed_session(model, feeds, threads=threads, provider=provider, settings=settings)


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
    took = _take([_on(model, feeds, threads, provider)], Limits(batches, min_seconds, max_seconds, precision), progress)
    ms, low, high, confidence = took.interval(0)
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
    """What was measured so far of one contender or several."""

    def __init__(self, contenders: int):
        self.times: list[list[float]] = [[] for _ in range(contenders)]  # seconds a run, one value a batch
        self.session_s: list[list[float | None]] = [[] for _ in range(contenders)]
        self.rounds: list[list[tuple[float, ...]]] = []  # by round: seconds a run of each, one entry for batches of all
        self.runs = 0

    @property
    def count(self) -> int:
        return len(self.times[0])

    def interval(self, i: int) -> tuple[float, float, float, float]:
        """Of the ratio of the first's time over that of contender i; of the first's seconds where i is 0."""
        return interval.of_median([[both[0] / both[i] if i else both[0] for both in r] for r in self.rounds])

    @property
    def intervals(self) -> list[tuple[float, float, float, float]]:
        return [self.interval(i) for i in range(1, len(self.times))] or [self.interval(0)]

    def settled(self, limits: Limits) -> bool:
        """The intervals are tight enough: within the precision, or a tenth of what a contender gained or lost."""
        for middle, low, high, confidence in self.intervals:
            precision = limits.precision
            if len(self.times) > 1:
                precision = max(precision, 0.1 * abs(middle - 1) / max(middle, 1.0))
            if confidence < interval.LEVEL or max(middle - low, high - middle) > precision * middle:
                return False
        return True

    def decided(self, limits: Limits) -> bool:
        """Every interval lies on one side of the ratio that is the question."""
        if limits.decide is None or len(self.rounds) < _DECIDING_ROUNDS:
            return False
        return all(confidence >= interval.LEVEL and not low <= limits.decide <= high for _, low, high, confidence in self.intervals)


def _take(contenders: Sequence[Contender], limits: Limits, progress: Progress | None) -> _Taken:
    """Takes batches of the contenders in turn, in rounds of fresh ones, until the figures are settled or time is up."""
    if limits.most < 1:
        raise ValueError(f"at least one pair must be taken, not {limits.most}")
    took = _Taken(len(contenders))
    start = time.perf_counter()
    while took.count < limits.most:
        round_start = time.perf_counter()
        order = list(range(len(contenders)))
        if len(took.rounds) % 2:
            order.reverse()
        ready: dict[int, Timed] = {}
        for i in order:
            ready[i] = contenders[i]()
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
    """One round: batches of each contender in turn, the order swapped every time, until the round's share is taken.

    ready: Timed by the place of its contender. setup_s, pair_s: seconds that the sessions took and that a pair will take.
    """
    current = took.rounds[-1]
    with no_collection():
        while took.count < limits.most:
            order = sorted(ready, reverse=(len(current) + len(took.rounds)) % 2 == 0)
            seconds = {i: ready[i].batch() for i in order}
            for i, s in seconds.items():
                took.times[i].append(s)
                took.runs += ready[i].runs
            current.append(tuple(seconds[i] for i in sorted(seconds)))
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
