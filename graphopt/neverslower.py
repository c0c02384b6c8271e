"""Drops the passes that made a candidate slower than the original beyond the noise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from graphopt.pipeline.bisect import Culprit
from graphopt.pipeline.runner import Candidate, Hold

_SECONDS = 15.0  # for the figure that is reported
_TRIAL_SECONDS = 6.0  # for a step of the search
_MOST_DROPPED = 3


class Bench(Protocol):
    """What the search needs: candidates with something held back, and their measured speed."""

    def build(self, hold: Hold) -> Candidate: ...

    def speed_of(self, candidate: Candidate, seconds: float) -> Any: ...


@dataclass
class Outcome:
    """A candidate that is not slower, its speed (None: nothing is left to measure), and what was dropped for it."""

    candidate: Candidate
    speed: dict[str, Any] | None
    culprits: list[Culprit] = field(default_factory=list)


def without_slowdown(bench: Bench, candidate: Candidate) -> Outcome:
    """Measure; while the result is slower beyond the noise, find the pass whose coming makes it so and drop it.

    The passes that applied anything are bisected by their order: the first prefix of the pipeline that is slower than
    the original names the pass. A slower result is measured a second time before it is believed. After three passes,
    or when no single pass can be blamed, nothing is applied at all: the original is then what is shipped.
    """
    outcome = Outcome(candidate, None)
    while True:
        if not outcome.candidate.changed:
            outcome.speed = None
            return outcome
        speed = bench.speed_of(outcome.candidate, _SECONDS)
        if speed.slower:
            speed = bench.speed_of(outcome.candidate, _SECONDS)  # the second figure counts, whatever it says
        if not speed.slower:
            outcome.speed = speed.to_dict()
            return outcome
        hold = outcome.candidate.hold
        blamed = _first_slower(bench, outcome.candidate) if len(outcome.culprits) < _MOST_DROPPED else None
        reason = f"with it the model is slower: {speed.ratio:.3f}x ({speed.low:.3f} to {speed.high:.3f})"
        if blamed is None:
            applied = frozenset(a.pass_name for a in outcome.candidate.applications)
            outcome.culprits.extend(Culprit(name, None, reason) for name in sorted(applied))
            outcome.candidate = bench.build(replace(hold, passes=hold.passes | applied, limit=None))
        else:
            outcome.culprits.append(Culprit(blamed, None, reason))
            outcome.candidate = bench.build(replace(hold, passes=hold.passes | {blamed}))


def _first_slower(bench: Bench, candidate: Candidate) -> str | None:
    """The pass with which the prefixes of the pipeline begin to be slower, or None where it cannot be told."""
    order = list(dict.fromkeys(a.pass_name for a in candidate.applications))
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        later = frozenset(order[middle:])
        prefix = bench.build(replace(candidate.hold, passes=candidate.hold.passes | later))
        if prefix.changed and bench.speed_of(prefix, _TRIAL_SECONDS).slower:
            high = middle
        else:
            low = middle
    return order[high - 1] if order else None
