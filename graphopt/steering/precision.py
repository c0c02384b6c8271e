"""Which applications of lossy passes to hold back so that the result is within its budget and loses the least speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Held = frozenset[int]
_PRICES = 80  # of noise that are tried


@dataclass(frozen=True)
class Point:
    """One candidate of a search.

    Attributes:
        held: the applications that are held back.
        saved: what the others save, in the unit of the costs.
        inside: whether it was measured to be within the budget.
    """

    held: Held
    saved: float
    inside: bool


@dataclass
class Found:
    """What a search came to.

    Attributes:
        best: what to hold back: of all that was measured to be inside, what saves most.
        points: everything that was measured, in order.
        complete: the search came to its end, rather than to that of its trials or its time.
    """

    best: Held
    points: list[Point] = field(default_factory=list)
    complete: bool = True


def order(alone: Mapping[int, float], saves: Mapping[int, float]) -> list[int]:
    """Applications in the order in which they go back to float: most noise for the least time first.

    Args:
        alone: the noise (a squared relative distance) that each brings in alone; infinite where it breaks the outputs.
        saves: what each saves; one that saves nothing goes first where it brings in any noise.
    """

    def worth(number: int) -> tuple[float, float, int]:
        noise, gain = alone.get(number, 0.0), max(saves.get(number, 0.0), 0.0)
        ratio = math.inf if gain == 0 and noise > 0 else noise / gain if gain else 0.0
        return (-ratio, -noise, number)

    return sorted(alone, key=worth)


def guess(ranked: Sequence[int], alone: Mapping[int, float], allowed: float) -> int:
    """How many of the first must go back for the noise of the rest to add up to no more than `allowed`."""
    left = 0.0
    for place in range(len(ranked), 0, -1):
        left += alone[ranked[place - 1]]
        if not left <= allowed:
            return place
    return 0


def prefixes(ranked: Sequence[int]) -> list[Held]:
    """What is held back in turn, from nothing to everything, where units go back in an order."""
    return [frozenset(ranked[:count]) for count in range(len(ranked) + 1)]


def tradeoffs(
    numbers: Sequence[int], noise: Mapping[int, float], choose: Callable[[Mapping[int, float]], Held], most_ms: float
) -> list[Held]:
    """What is held back in turn where noise is given a price that rises: each is the best there is at its price.

    A minimum cut over times, conversions and priced noise is the Lagrangian relaxation of the least time within a bound of
    noise. Since the price is on being narrow alone, what is narrow at a higher price is narrow at a lower one as well
    (Gallo, Grigoriadis, Tarjan, A fast parametric maximum flow algorithm and applications, SIAM J. Comput. 18, 1989).

    Args:
        noise: of each; infinite where it breaks the outputs.
        choose: the units that are best narrow, given what narrowing each costs beyond its time, in milliseconds.
        most_ms: what no unit saves more than.
    """
    whole = frozenset(numbers)
    finite = [v for v in noise.values() if 0 < v < math.inf]
    found = [frozenset[int]()]
    if finite:
        low, high = 1e-4 * most_ms / max(finite), 2 * most_ms / min(finite)
        for price in (low * (high / low) ** (i / (_PRICES - 1)) for i in range(_PRICES)):
            penalties = {n: most_ms * 2 if math.isinf(v) else min(price * v, most_ms * 2) for n, v in noise.items()}
            held = found[-1] | (whole - choose(penalties))
            if held != found[-1]:
                found.append(held)
    return found if found[-1] == whole else [*found, whole]


def search(
    steps: Sequence[Held],
    saved: Callable[[Held], float],
    inside: Callable[[Held], bool],
    *,
    start: int | None = None,
    trials: int = 40,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Find what to hold back. Holding everything back is right by definition: it is the model without lossy passes.

    Which of `steps` is far enough is bisected, beginning at `start`. Then each unit that went back is tried narrowed
    again, those that gain most first: noise does not add up as simply as the steps suppose. What is given back was
    measured to be inside, whatever was supposed of the rest.

    Args:
        steps: what to hold back, from nothing, which is known to be outside, to everything, each with all of the one before.
        saved: what is saved with these held back.
        inside: measures a candidate with these held back, and says whether it is within the budget.
        trials, seconds: after that many or that long, the best so far is taken.
    """
    end = clock() + seconds
    everything = steps[-1]
    found = Found(everything)
    known = {steps[0]: False} | {everything: True}

    def spent() -> bool:
        return len(found.points) >= trials or clock() >= end

    def test(held: Held) -> bool:
        if held not in known:
            known[held] = inside(held)
            found.points.append(Point(held, saved(held), known[held]))
        return known[held]

    low, high = 0, len(steps) - 1  # the first of them is too little, the last enough
    middle = start if start is not None and low < start < high else (low + high) // 2
    while high - low > 1:
        if spent():
            found.complete = False
            break
        if test(steps[middle]):
            high = middle
        else:
            low = middle
        middle = (low + high) // 2
    held = steps[high]
    gains = {n: saved(held - {n}) - saved(held) for n in held}
    for number in sorted(held, key=lambda n: (-gains[n], n)):
        if spent():
            found.complete = False
            break
        if saved(held - {number}) >= saved(held) and test(held - {number}):
            held = held - {number}
    good = [Point(everything, saved(everything), True), *(p for p in found.points if p.inside)]
    found.best = max(good, key=lambda p: (p.saved, -len(p.held))).held
    return found
