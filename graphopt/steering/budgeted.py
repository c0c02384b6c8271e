"""The best candidate within a budget: what narrowing costs, what goes back to float for it, and what is told of that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from graphopt import runtime
from graphopt.metric import fingerprint
from graphopt.pipeline.runner import Candidate
from graphopt.steering.costs import estimated
from graphopt.steering.journal import Journal
from graphopt.steering.narrowing import Narrowing, Precision, journal_path, key_of, lossy_passes, units_of

if TYPE_CHECKING:
    from graphopt.placement import Placement
    from graphopt.workbench import Workbench

#: Seconds in which what each application costs is measured where nothing is over the budget: that is for the report alone.
LOOK = 15.0


@dataclass
class Outcome:
    """What a search came to.

    Attributes:
        candidate: within the budget, and verified.
        verification: of it.
        precision: what is known of the lossy applications.
        notes, warnings: for the report.
    """

    candidate: Candidate
    verification: dict[str, Any]
    precision: Precision
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Budgeted:
    """The lossy applications of one candidate and their budget."""

    def __init__(
        self, bench: Workbench, candidate: Candidate, placement: Placement | None = None, whole: Candidate | None = None
    ) -> None:  # fmt: skip
        """placement: what each application saves; whole: the candidate before anything was placed, which measuring does not change."""
        self.bench, self.candidate, self.placement = bench, candidate, placement
        self.whole = candidate if whole is None else whole
        request = bench.request
        self.precision = Precision(request.accepted, request.metric_judges, units_of(candidate))
        self.base: Candidate | None = None
        self.noise: Callable[[], dict[int, float]] = dict  # what each application brings in alone, as far as it was measured

    @property
    def passes(self) -> frozenset[str]:
        """The lossy passes."""
        return lossy_passes(self.candidate)

    def float_base(self) -> Candidate:
        """The candidate without its lossy passes."""
        if self.base is None:
            hold = self.candidate.hold
            self.base = self.bench.build(replace(hold, passes=hold.passes | lossy_passes(self.candidate)))
        return self.base

    def look(self, seconds: float = LOOK) -> Precision:
        """What each application costs, of a candidate that is within its budget; in groups where there is no time for more."""
        self._costs()
        narrowing = self._narrowing(Journal(None, ""), seconds)
        narrowing.sensitivities(1.0)
        self.precision.final = narrowing.start()
        self.noise = narrowing.noise
        return self.precision

    def search(self, reason: str) -> Outcome:
        """The best candidate within the budget, of one that is beyond it.

        Raises:
            OutputError: the journal cannot be written. The user's interruption leaves it for the next run to go on.
        """
        bench, request, started = self.bench, self.bench.request, time.monotonic()
        journal = self._journal()
        notes = [journal.stale] if journal.stale else []
        try:
            self._costs()
            narrowing = self._narrowing(journal, request.search_seconds)
            self.noise = narrowing.noise
            narrowing.start()
            narrowing.sensitivities()
            found = narrowing.search()
            taken = journal.taken
            for held in narrowing.candidates(found):
                candidate = narrowing.without(held)
                wrong, verification = bench.compare(candidate)
                if wrong is None:
                    break
                narrowing.refuted(held)
            else:
                candidate = self.float_base()
                held = frozenset(narrowing.numbers)
                _, verification = bench.compare(candidate)
        finally:
            journal.close()
        journal.close(remove=request.journal is None)
        precision = self.precision
        precision.held = dict.fromkeys(held, "went back to float for the budget")
        precision.taken, precision.seconds = taken, time.monotonic() - started
        precision.final = narrowing.quality.get(held)
        notes.append(_told(precision, len(held), reason))
        warnings = []
        if not units_of(candidate):
            warnings = [f"{', '.join(sorted(self.passes))}: nothing of it is within the budget of {precision.budget}: {reason}"]
        return Outcome(candidate, verification, precision, notes, warnings)

    # --- parts --------------------------------------------------------------------------------------------------

    def _costs(self) -> None:
        precision = self.precision
        if self.placement is not None and self.placement.saves:
            precision.saves, precision.unit = dict(self.placement.saves), "ms"
            return
        precision.saves = estimated(self.float_base().model.graph, precision.units)

    def _journal(self) -> Journal:
        request, bench = self.bench.request, self.bench
        path = request.journal if request.journal is not None else journal_path(request.destination)
        judged = "" if request.metric is None else fingerprint(request.metric)
        about = (runtime.version(), request.provider, request.threads, judged, sorted(self.whole.hold.passes))
        return Journal(path, key_of(self.whole, bench.samples, *about))

    def _narrowing(self, journal: Journal, seconds: float) -> Narrowing:
        return Narrowing(
            self.bench, self.candidate, self.precision, journal, samples=len(self.bench.samples), seconds=seconds,
            placement=self.placement, shown=self.bench.count,
        )  # fmt: skip


def _told(precision: Precision, held: int, reason: str) -> str:
    """The search in one line."""
    units = len(precision.units)
    what = f"{held} of {units} applications of lossy passes went back to float to keep the budget of {precision.budget} ({reason})"
    trials = f"{len(precision.trials)} candidates" + (f", {precision.taken} measurements were in the journal" if precision.taken else "")
    end = "" if precision.complete else "; the search was cut short by its time or its trials"
    best = "" if held < units else "; no narrowing is within it"
    return f"{what}: {trials} in {precision.seconds:.0f} s{end}{best}"
