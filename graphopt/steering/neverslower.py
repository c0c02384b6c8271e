"""Drops the passes that made a candidate slower than the original beyond the noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from graphopt.pipeline.bisect import Culprit
from graphopt.pipeline.runner import Candidate
from graphopt.steering.leaving_out import Bench, Trial, applied_passes, leave_out

_SECONDS = 15.0  # for the figure that is reported
_TRIAL_SECONDS = 6.0  # for a step of the search
_SEARCH_SECONDS = 90.0  # for all steps
_MOST_DROPPED = 3


@dataclass
class Outcome:
    """A candidate that is not slower, its speed (None: nothing is left to measure), and what was dropped for it."""

    candidate: Candidate
    speed: dict[str, Any] | None
    culprits: list[Culprit] = field(default_factory=list)


def without_slowdown(bench: Bench, candidate: Candidate, *, clock: Callable[[], float] = time.monotonic) -> Outcome:
    """Measure; while the result is slower beyond the noise, find the pass without which it is fastest, and drop it.

    A slower result is measured a second time before it is believed. After three passes, or when no single pass can be
    blamed, nothing is applied at all: the original is then what is shipped.
    """
    outcome = Outcome(candidate, None)
    end = clock() + _SEARCH_SECONDS
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
        reason = f"with it the model is slower: {speed.ratio:.3f}x ({speed.low:.3f} to {speed.high:.3f})"
        left = (lambda: end - clock()) if len(outcome.culprits) < _MOST_DROPPED else (lambda: 0.0)
        blamed, trial = _at_fault(bench, outcome.candidate, left)
        if trial is None:
            applied = frozenset(applied_passes(outcome.candidate))
            outcome.culprits.extend(Culprit(name, None, reason) for name in sorted(applied))
            outcome.candidate = bench.build(replace(hold, passes=hold.passes | applied, limit=None))
        else:
            outcome.culprits.append(Culprit(blamed, None, reason))
            outcome.candidate = trial.candidate


def _at_fault(bench: Bench, candidate: Candidate, left: Callable[[], float]) -> tuple[str, Trial | None]:
    """The pass without which the candidate is measurably faster, the most where there are several.

    Each is left out in turn. A bisection over prefixes of the pipeline would be quicker, and would blame a pass whose
    clutter a later one clears up. The last passes come first: early ones, which clean up, are seldom to blame.
    """
    worst: tuple[float, str, Trial | None] = (1.0, "", None)
    for name in reversed(applied_passes(candidate)):
        if left() <= 0:
            break
        trial = leave_out(bench, candidate, name, _TRIAL_SECONDS)
        if trial.speed is not None and trial.speed.slower and trial.speed.ratio < worst[0]:
            worst = (trial.speed.ratio, name, trial)
    return worst[1], worst[2]
