"""The part of a run that proves what was made: verification, and what is undone for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.findings import Findings
    from graphopt.pipeline.bisect import Culprit
    from graphopt.pipeline.presets import Pipeline
    from graphopt.pipeline.runner import Candidate
    from graphopt.placement import Placement
    from graphopt.request import Request
    from graphopt.steering.budgeted import Budgeted
    from graphopt.workbench import Stages, Workbench


class Verifying:
    """What a run knows and does about whether candidates are right."""

    request: Request
    pipeline: Pipeline
    bench: Workbench
    found: Findings
    stages: Stages
    budgeted: Budgeted | None = None

    def _verified(self, candidate: Candidate) -> Candidate:
        """The candidate if it verifies, else the best one without what made it differ."""
        if self.request.verify == "each":
            candidate = self._verified_step_by_step(candidate)
        reason, self.found.verification = self.bench.compare(candidate)
        return candidate if reason is None else self._mended(candidate, reason)

    def _mended(self, candidate: Candidate, reason: str) -> Candidate:
        """The best candidate that verifies: what is wrong is left out; of what is only beyond the budget, as much as must be."""
        from graphopt.steering.budgeted import Budgeted

        placed, whole = False, candidate
        while (self.found.verification or {}).get("over_budget"):
            budgeted = self.budgeted = Budgeted(self.bench, candidate, self._placement(), whole)
            wrong, _ = self.bench.compare(budgeted.float_base(), final=False)
            if wrong is not None:  # a lossy pass hid a fault of another one: that goes first
                sound = self._without_culprits(budgeted.float_base(), wrong)
                if any(culprit.pass_name == "(none)" for _, culprit in self.found.culprits):
                    return sound
                candidate = whole = self.bench.build(replace(sound.hold, passes=sound.hold.passes - budgeted.passes))
                again, self.found.verification = self.bench.compare(candidate)
                if again is None:
                    return candidate
                reason = again
                continue
            if not placed and self.request.bench and self.request.passes is None:
                # What narrowing gains must be known to give up the least of it.
                placed, chosen = True, self._placed(candidate)
                if chosen is not candidate:
                    candidate = chosen
                    again, self.found.verification = self.bench.compare(candidate)
                    if again is None:
                        self.budgeted = None  # nothing was searched: what narrowing costs is measured of the result
                        return candidate
                    reason = again
                    continue
                budgeted.placement = self._placement()
            outcome = budgeted.search(reason)
            self.found.verification = outcome.verification
            self.found.notes += outcome.notes
            self.found.warnings += outcome.warnings
            return outcome.candidate
        return self._without_culprits(candidate, reason)

    def _placed(self, candidate: Candidate) -> Candidate:
        """The candidate with what passes narrowed left in float where that measures faster."""
        from graphopt.steering.placing import place

        with self.stages.within("placing units in float and on integers") as stage:
            self.found.placing = place(self.bench, candidate, self.pipeline.steps, self.bench.tools.target, progress=stage)
        return candidate if self.found.placing is None else self.found.placing.candidate

    def _placement(self) -> Placement | None:
        """What is known of where units are fastest."""
        placing = self.found.placing
        return None if placing is None or not placing.placement.units else placing.placement

    def _verified_step_by_step(self, candidate: Candidate) -> Candidate:
        """Compare after every pass that changed something, in order; the first that differs is where bisection looks."""
        tested = 0
        while True:
            ends = _pass_ends(candidate)
            bad = None
            for end in ends[tested:-1]:
                prefix = self.bench.build(replace(candidate.hold, limit=end))
                reason, seen = self.bench.compare(prefix, final=False)
                if reason is not None and not seen.get("over_budget"):  # that is for the whole to decide
                    bad = prefix, reason
                    break
                tested += 1
            if bad is None:
                return candidate
            held = self._without_culprits(*bad).hold
            candidate = self.bench.build(replace(held, limit=None))

    def _without_culprits(self, candidate: Candidate, reason: str) -> Candidate:
        from graphopt.pipeline.bisect import without_culprits

        def test(trial: Candidate) -> str | None:
            return self.bench.compare(trial, final=False)[0]

        search = without_culprits(self.bench.build, test, candidate, reason)
        _, self.found.verification = self.bench.compare(search.candidate)
        for culprit in search.culprits:
            self.found.rolled_back("different", culprit)
        self._reproducers(search.culprits, candidate)
        return search.candidate

    def _reproducers(self, culprits: list[Culprit], failing: Candidate) -> None:
        from graphopt.reproducer import write_reproducer

        bench, request = self.bench, self.request
        for culprit in culprits:
            if culprit.label is None:
                continue
            folder = write_reproducer(culprit, failing, bench.build, bench.samples, request.destination, threads=request.threads)
            if folder is not None:
                self.found.notes.append(f"a reproducer of the fault of {culprit.pass_name} is in {folder}")

    def _precision(self, candidate: Candidate) -> None:
        """What lossy passes narrowed, and what that costs."""
        from graphopt.steering.budgeted import Budgeted
        from graphopt.steering.narrowing import lossy_passes
        from graphopt.steering.story import tell

        if self.bench.reference is None or not self.bench.samples or self.request.verify == "off":
            return
        if self.budgeted is None and lossy_passes(candidate):
            with self.stages.stage("verify", "measuring what narrowing costs"):
                self.budgeted = Budgeted(self.bench, candidate, self._placement())
                self.budgeted.look()
        if self.budgeted is not None:
            self.found.precision = tell(self.budgeted, candidate, self._placement())
            if self.request.budget is None:
                of = "of the metric" if self.request.metric_judges else "at every output (20 dB)"
                self.found.notes.append(f"no budget was given: lossy passes may lose {self.request.accepted} {of}")


def _pass_ends(candidate: Candidate) -> list[int]:
    """For each stretch of applications of one pass, the number after its last."""
    ends: list[int] = []
    last = None
    for application in candidate.applications:
        if application.pass_name == last:
            ends[-1] = application.number + 1
        else:
            ends.append(application.number + 1)
        last = application.pass_name
    return ends
