"""The share to cut, searched: the most that the budget allows, or the least that reaches the speed that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST = 0.9  # share that is tried at the most


@dataclass(frozen=True)
class Trial:
    """One share that was tried.

    Attributes:
        share: of the channels, asked for.
        loss: of quality, relative.
        ratio, low, high: speed beside the original, with its interval.
        parameters: that are left.
        path: the model.
        detail: whatever else the report tells of it.
    """

    share: float
    loss: float
    ratio: float
    low: float
    high: float
    parameters: int
    path: Path
    detail: dict[str, Any]

    def within(self, budget: float) -> bool:
        """Whether its loss is within the budget; a loss that is no number is not."""
        return self.loss <= budget


@dataclass(frozen=True)
class Found:
    """What a search came to: all trials in the order in which they were made, and the best, None where none will do."""

    trials: list[Trial]
    best: Trial | None


def search(attempt: Callable[[float], Trial], budget: float, *, target: float | None = None, trials: int = 8) -> Found:
    """Bisect over the share, on the assumption that a larger one is faster and loses more.

    Without a `target` the largest share within the budget is looked for; with one, once it is reached within the
    budget, the smallest that reaches it. What is given back is judged by what was measured, not by the assumption.

    Args:
        attempt: makes and measures the model for a share.
        budget: the loss of quality that is accepted.
        target: speed beside the original that is enough.
        trials: how many shares are tried at the most.
    """
    made: list[Trial] = []
    low, high = 0.0, MOST
    share = MOST / 2
    for _ in range(trials):
        trial = attempt(share)
        made.append(trial)
        if trial.within(budget) and (target is None or trial.ratio < target):
            low = share
        else:
            high = share
        share = (low + high) / 2
        if high - low < 0.02:
            break
    return Found(made, best_of(made, budget, target))


def best_of(made: list[Trial], budget: float, target: float | None = None) -> Trial | None:
    """The trial to take: of those within the budget that reach the target the one that loses least, otherwise the fastest.

    Of two whose intervals meet the one with fewer parameters is the faster.
    """
    good = [t for t in made if t.within(budget)]
    reached = [t for t in good if target is not None and t.ratio >= target]
    if reached:
        return min(reached, key=lambda t: (t.loss, t.share))
    best = None
    for trial in good:
        if best is None or trial.low > best.high or (trial.high >= best.low and trial.parameters < best.parameters):
            best = trial
    return best
