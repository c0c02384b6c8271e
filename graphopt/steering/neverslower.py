"""Drops the passes that made a candidate slower than the original beyond the noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from graphopt.measurement import Speed
from graphopt.pipeline.bisect import Culprit
from graphopt.pipeline.runner import Candidate
from graphopt.steering.leaving_out import EVEN, Bench, Trial, applied_passes, leave_out

_SECONDS = 12.0  # for the figure that is reported
_SMALL_SECONDS = 4.0  # for the same at the small size
_TRIAL_SECONDS = 6.0  # for a step of the search
_SEARCH_SECONDS = 90.0  # for all steps
_MOST_DROPPED = 3


@dataclass
class Outcome:
    """A candidate that is not slower, its speed (None: nothing is left to measure), and what was dropped for it.

    `loss`: what the small size pays for the usual one, in one line.
    """

    candidate: Candidate
    speed: dict[str, Any] | None
    culprits: list[Culprit] = field(default_factory=list)
    loss: str = ""


def without_slowdown(
    bench: Bench, candidate: Candidate, *, keep: frozenset[str] = frozenset(), clock: Callable[[], float] = time.monotonic
) -> Outcome:
    """Measure; while the result is slower beyond the noise, find the pass without which it is fastest, and drop it.

    A slower result is measured a second time before it is believed. After three passes, or when no single pass can be
    blamed, nothing is applied at all: the original is then what is shipped. Where inputs come in a small size, too, a
    pass that makes it slower there is dropped unless it gains at the usual size.

    `keep`: passes that are there for another gain than speed; they are never dropped, and what they cost is told.
    """
    outcome = Outcome(candidate, None)
    end = clock() + _SEARCH_SECONDS
    while True:
        if not outcome.candidate.changed:
            outcome.speed = None
            return outcome
        left = (lambda: end - clock()) if len(outcome.culprits) < _MOST_DROPPED else (lambda: 0.0)
        speed = _measured(bench, outcome.candidate, _SECONDS)
        if not speed.slower:
            outcome.speed = speed.to_dict() | {"shapes": bench.shapes()}
            if bench.shapes(small=True) is None or not _dropped_for_the_small_size(bench, outcome, left, keep):
                return outcome
            continue
        hold = outcome.candidate.hold
        reason = f"with it the model is slower: {_figures(speed)}"
        blamed, trial = _at_fault(bench, outcome.candidate, left, keep)
        if trial is None:
            applied = frozenset(applied_passes(outcome.candidate))
            if kept := sorted(applied & keep):
                outcome.speed = speed.to_dict() | {"shapes": bench.shapes()}
                outcome.loss = f"the result is slower: {_figures(speed)}; {', '.join(kept)} is there to make it smaller"
                if bench.shapes(small=True) is not None:
                    small = _measured(bench, outcome.candidate, _SMALL_SECONDS, small=True)
                    outcome.speed["smaller"] = small.to_dict() | {"shapes": bench.shapes(small=True)}
                return outcome
            outcome.culprits.extend(Culprit(name, None, reason) for name in sorted(applied))
            outcome.candidate = bench.build(replace(hold, passes=hold.passes | applied, limit=None))
        else:
            outcome.culprits.append(Culprit(blamed, None, reason))
            outcome.candidate = trial.candidate


def _dropped_for_the_small_size(bench: Bench, outcome: Outcome, left: Callable[[], float], keep: frozenset[str]) -> bool:
    """Measure at the small size, too; where it is slower there, drop the pass at fault, if that costs the usual size nothing."""
    candidate = outcome.candidate
    speed = _measured(bench, candidate, _SMALL_SECONDS, small=True)
    shapes = bench.shapes(small=True)
    outcome.speed["smaller"], outcome.loss = speed.to_dict() | {"shapes": shapes}, ""
    if not speed.slower:
        return False
    blamed, trial = _at_fault(bench, candidate, left, keep, small=True)
    if trial is None or bench.race(trial.candidate, candidate, _TRIAL_SECONDS, EVEN).faster:
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        outcome.loss = f"on small inputs ({shown}) the result is slower: {_figures(speed)}"
        return False
    outcome.culprits.append(Culprit(blamed, None, f"with it the model is slower on small inputs: {_figures(speed)}"))
    outcome.candidate = trial.candidate
    return True


def _measured(bench: Bench, candidate: Candidate, seconds: float, *, small: bool = False) -> Speed:
    speed = bench.speed_of(candidate, seconds, small=small)
    if speed.slower:
        speed = bench.speed_of(candidate, seconds, small=small)  # the second figure counts, whatever it says
    return speed


def _figures(speed: Speed) -> str:
    return f"{speed.ratio:.3f}x ({speed.low:.3f} to {speed.high:.3f})"


def _at_fault(
    bench: Bench, candidate: Candidate, left: Callable[[], float], keep: frozenset[str], *, small: bool = False
) -> tuple[str, Trial | None]:
    """The pass without which the candidate is measurably faster, the most where there are several.

    Each is left out in turn. A bisection over prefixes of the pipeline would be quicker, and would blame a pass whose
    clutter a later one clears up. The last passes come first: early ones, which clean up, are seldom to blame.
    """
    worst: tuple[float, str, Trial | None] = (1.0, "", None)
    for name in reversed(applied_passes(candidate)):
        if left() <= 0:
            break
        if name in keep:
            continue
        trial = leave_out(bench, candidate, name, _TRIAL_SECONDS, small=small)
        if trial.speed is not None and trial.speed.slower and trial.speed.ratio < worst[0]:
            worst = (trial.speed.ratio, name, trial)
    return worst[1], worst[2]
