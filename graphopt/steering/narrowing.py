"""A lossy candidate beyond its budget: what of it goes back to float, found by measuring; and what each part of it costs.

Every application of a lossy pass is one unit of precision. What is noise alone is measured once for each, on few samples;
that gives an order, and candidates in that order are measured on all samples. Everything measured goes to a journal.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from graphopt.budget import Budget
from graphopt.pipeline.runner import Application, Candidate, Hold
from graphopt.placement import Placement
from graphopt.quality import Quality
from graphopt.rewriting.base import Effect
from graphopt.steering.journal import Journal
from graphopt.steering.precision import Found, Held, guess, order, prefixes, search, tradeoffs

SAMPLES = 4  # that what each application costs alone is measured on
_SENSITIVITY_SHARE = 0.5  # of the time, at the most, for that
TRIALS = 40


class Bench(Protocol):
    """What the search needs."""

    def build(self, hold: Hold) -> Candidate: ...

    def figures(self, candidate: Candidate, *, most: int | None = None, metric: bool = True, both: bool = False) -> Quality: ...

    def tell(self, text: str) -> None: ...


@dataclass
class Precision:
    """What is known of the lossy applications of a candidate.

    Attributes:
        budget: what is accepted; metric: whether it is one of the user's measure.
        units: the applications, in order.
        alone: by number, the figures with nothing narrowed but this one, or but the group that it was measured in.
        grouped: the numbers that were measured with others, for want of time.
        saves: by number, what it saves, in `unit`: "ms" measured, or "multiplications" estimated.
        held: what went back to float, and why: by number.
        trials: what was held back, what the rest saves as a part of all, the figures, and whether that was within the budget.
        final: the figures of what is written.
        complete: the search was not cut short by its trials or its time.
        searched: whether there was anything to search for.
        journal: its file; None where there was none. taken: measurements found there.
    """

    budget: Budget
    metric: bool
    units: list[Application]
    alone: dict[int, Quality] = field(default_factory=dict)
    grouped: set[int] = field(default_factory=set)
    saves: Mapping[int, float] = field(default_factory=dict)
    unit: str = "multiplications"
    held: dict[int, str] = field(default_factory=dict)
    trials: list[tuple[Held, float, Quality, bool]] = field(default_factory=list)
    final: Quality | None = None
    complete: bool = True
    searched: bool = False
    taken: int = 0
    seconds: float = 0.0


def lossy_passes(candidate: Candidate) -> frozenset[str]:
    """The lossy passes that changed a candidate."""
    return frozenset(run.name for run in candidate.runs if run.applied and Effect(run.effect) is Effect.LOSSY)


def units_of(candidate: Candidate) -> list[Application]:
    """The applications of lossy passes, in order; those that only correct what others rounded are no precision of their own."""
    lossy = lossy_passes(candidate) - followers(candidate)
    return [a for a in candidate.applications if a.pass_name in lossy]


def followers(candidate: Candidate) -> frozenset[str]:
    """The passes that only correct what others rounded."""
    return frozenset(run.name for run in candidate.runs if run.corrects)


def key_of(candidate: Candidate, samples: Sequence[Any], *about: Any) -> str:
    """A digest of a candidate, which holds all that passes, options and calibration made of the model, and of what judges it."""
    from graphopt.formats import digest

    made = hashlib.sha256(digest(candidate.model.graph))
    made.update(repr([(a.number, a.pass_name, a.label) for a in candidate.applications]).encode())
    made.update(repr(about).encode())
    for sample in samples:
        for name, value in sorted(sample.feeds.items()):
            array = np.asarray(value)
            made.update(f"{name} {array.dtype} {array.shape}".encode())
            made.update(array.tobytes() if array.dtype != object else repr(array.tolist()).encode())
    return made.hexdigest()


class Narrowing:
    """One search."""

    def __init__(
        self,
        bench: Bench,
        candidate: Candidate,
        precision: Precision,
        journal: Journal,
        *,
        samples: int,
        seconds: float,
        placement: Placement | None = None,
        shown: Callable[[float, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """samples: how many there are; seconds: for all of it; placement: what is known of times; shown: told how far it has come."""
        self.bench, self.candidate, self.precision, self.journal = bench, candidate, precision, journal
        self.placement = placement
        self.numbers = [a.number for a in precision.units]
        self.followers = followers(candidate)  # what narrowing costs before anything corrects it; and they may take long
        self.few = min(SAMPLES, samples)
        self.clock, self.end, self.seconds = clock, clock() + seconds, seconds
        self.shown = shown or (lambda done, total: None)
        self.quality: dict[Held, Quality] = {}

    # --- what each costs alone ----------------------------------------------------------------------------------

    def sensitivities(self, share: float = _SENSITIVITY_SHARE) -> None:
        """Measure each application alone; in groups of neighbours where there is no time for that."""
        if not self.numbers:
            return
        started, allowed = self.clock(), share * self.seconds
        first = self._alone([self.numbers[0]])
        taken = max(self.clock() - started, 1e-9)
        affordable = max(1, int(allowed / taken))
        rest = self.numbers[1:]
        size = math.ceil(len(rest) / affordable) if self._unknown(rest) * taken > allowed else 1
        groups = [[self.numbers[0]], *(rest[i : i + size] for i in range(0, len(rest), size))]
        for done, group in enumerate(groups):
            self.bench.tell(f"measuring what narrowing costs, {done + 1} of {len(groups)}")
            self.shown(done, len(groups))
            found = first if done == 0 else self._alone(group)
            self.precision.alone.update(dict.fromkeys(group, found))
            if len(group) > 1:
                self.precision.grouped.update(group)

    def _unknown(self, numbers: Sequence[int]) -> int:
        return sum(self.journal.get("alone", [n]) is None for n in numbers)

    def _alone(self, group: Sequence[int]) -> Quality:
        known = self.journal.get("alone", group)
        if known is None:
            hold = self._holding(frozenset(self.numbers) - set(group))
            trial = self.bench.build(replace(hold, passes=hold.passes | self.followers))
            known = self.bench.figures(trial, most=self.few, metric=False)
            self.journal.put("alone", group, known)
        return known

    def noise(self) -> dict[int, float]:
        """What each brings in; the members of a group share theirs."""
        sizes: dict[int, int] = {}
        for number in self.precision.grouped:
            key = id(self.precision.alone[number])
            sizes[key] = sizes.get(key, 0) + 1
        return {n: q.noise / (sizes.get(id(q), 1) if n in self.precision.grouped else 1) for n, q in self.precision.alone.items()}

    # --- candidates ---------------------------------------------------------------------------------------------

    def held(self, held: Held) -> Quality:
        """The figures of the candidate with these held back, on all samples."""
        if held not in self.quality:
            whole = held | self.candidate.hold.applications  # whatever else was left in float before, as by a placement
            known = self.journal.get("held", whole)
            if known is None:
                known = self.bench.figures(self.bench.build(self._holding(held)), both=True)
                self.journal.put("held", whole, known)
            self.quality[held] = known
        return self.quality[held]

    def search(self) -> Found:
        """What to hold back, as far as the figures tell."""
        precision, noise = self.precision, self.noise()
        steps, start = self._steps(noise)
        count = 0

        def inside(held: Held) -> bool:
            nonlocal count
            count += 1
            self.bench.tell(f"searching: {len(held)} of {len(self.numbers)} back in float, trial {count}")
            self.shown(count - 1, TRIALS)
            quality = self.held(held)
            good = quality.within(precision.budget, precision.metric)
            precision.trials.append((held, self.part(held), quality, good))
            return good

        self.start()
        found = search(steps, self.saved, inside, start=start, trials=TRIALS, seconds=max(0.0, self.end - self.clock()), clock=self.clock)
        precision.complete, precision.searched = found.complete, True
        return found

    def start(self) -> Quality:
        """The figures of the candidate as it is."""
        quality = self.held(frozenset())
        if not any(not held for held, *_ in self.precision.trials):
            good = quality.within(self.precision.budget, self.precision.metric)
            self.precision.trials.append((frozenset(), 1.0, quality, good))
        return quality

    def candidates(self, found: Found) -> list[Held]:
        """Everything that was measured to be within the budget, what saves most first; none of it is all."""
        good = sorted((p for p in found.points if p.inside), key=lambda p: (-p.saved, len(p.held)))
        return [found.best, *(p.held for p in good if p.held != found.best)]

    def refuted(self, held: Held) -> None:
        """Verification, which looks closer, found a candidate to be beyond the budget."""
        trials = self.precision.trials
        self.precision.trials = [(h, saved, quality, inside and h != held) for h, saved, quality, inside in trials]

    def without(self, held: Held) -> Candidate:
        """The candidate with these held back; with all of them, the lossy passes are left out whole."""
        if held == frozenset(self.numbers):
            hold = self.candidate.hold
            return self.bench.build(replace(hold, passes=hold.passes | lossy_passes(self.candidate)))
        return self.bench.build(self._holding(held))

    def _steps(self, noise: Mapping[int, float]) -> tuple[list[Held], int | None]:
        """What to hold back in turn, and with which to begin: where the noise of the rest adds up to what is allowed."""
        placement, allowed = self.placement, self.precision.budget.distance**2
        if placement is None or placement.choose is None:
            ranked = order(noise, self.precision.saves)
            return prefixes(ranked), None if self.precision.metric else guess(ranked, noise, allowed)
        most = max(placement.predicted_ms.values(), default=1.0)
        steps = tradeoffs(self.numbers, noise, placement.choose, most)
        start = next((i for i, held in enumerate(steps) if sum(v for n, v in noise.items() if n not in held) <= allowed), None)
        return steps, None if self.precision.metric else start

    def saved(self, held: Held) -> float:
        """What the others save: milliseconds, conversions included, where that was measured."""
        narrow = frozenset(self.numbers) - held
        if self.placement is not None and self.placement.predict is not None:
            return self.placement.predict(frozenset()) - self.placement.predict(narrow)
        return sum(self.precision.saves.get(n, 0.0) for n in narrow)

    def part(self, held: Held) -> float:
        """The same as a part of what all save."""
        whole = self.saved(frozenset())
        return self.saved(held) / whole if whole > 0 else 1 - len(held) / max(len(self.numbers), 1)

    def _holding(self, held: Held) -> Hold:
        hold = self.candidate.hold
        return replace(hold, applications=hold.applications | held)


def journal_path(destination: Path) -> Path:
    """Where the journal of a search for a result goes where nobody said."""
    return destination.with_name(f"{destination.name}.search.jsonl")
