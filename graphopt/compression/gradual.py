"""Cutting a little at a time: each step begins with what the one before came to, and is as large as quality lets it be."""

from __future__ import annotations

from collections.abc import Callable

from graphopt.compression.search import MOST, Found, Trial, best_of

_FIRST = 0.25  # share of the first step
_LONGEST = 0.35
_SHORTEST = 0.02


def gradual(attempt: Callable[[float, Trial | None], Trial], budget: float, *, target: float | None = None, trials: int = 8) -> Found:
    """Go on while the loss is within the budget; step back and go slower where a step costs more than its share.

    The share of the budget that is a step's: half of what is left of it. A step that costs more is undone, and half of it
    tried. One that costs less than half of its share makes the next one longer by a half.

    Args:
        attempt: makes and measures the model for a share of the original's channels, out of the model of a trial
            (None: the original).
        budget: the loss of quality that is accepted.
        target: speed beside the original that is enough.
        trials: steps at the most, those that are undone among them.
    """
    made: list[Trial] = []
    at: Trial | None = None
    step = _FIRST
    for _ in range(trials):
        share, loss = (at.share, max(at.loss, 0.0)) if at is not None else (0.0, 0.0)
        wanted = min(share + step, MOST)
        if wanted - share < _SHORTEST:
            break
        trial = attempt(wanted, at)
        made.append(trial)
        reached = target is not None and trial.ratio >= target
        if trial.within(budget) and reached:
            break
        own = (budget - loss) / 2
        cost = trial.loss - loss
        if cost <= own and trial.within(budget):
            at = trial
            if cost <= own / 2:
                step = min(step * 1.5, _LONGEST)
        else:
            step = (wanted - share) / 2
    return Found(made, best_of(made, budget, target))
