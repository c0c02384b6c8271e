"""One run from a model file to an optimized one: load, pipeline, verify, measure, save, report."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphopt import runtime
from graphopt.errors import GraphoptError
from graphopt.request import Request, check, load, plan
from graphopt.settings import Settings
from graphopt.workbench import Stages, Workbench, work_folder

if TYPE_CHECKING:
    from graphopt.pipeline.bisect import Culprit
    from graphopt.pipeline.presets import Pipeline
    from graphopt.pipeline.runner import Candidate, Hold, PassRun
    from graphopt.reporting import Report
    from graphopt.reporting.progress import Progress
    from graphopt.steering.choices import Choice
    from graphopt.steering.tuning import Tuned


@dataclass
class Result:
    """What came of a run.

    Attributes:
        report: what the terminal and the JSON show.
        exit_code: 0: done and verified; 1: done, but not verified, or not within what was asked.
        candidate: the model as written and how it came about.
    """

    report: Report
    exit_code: int
    candidate: Candidate


def optimize(request: Request, *, progress: Progress | None = None) -> Result:
    """Carry a request out; the input is left alone unless it says `in_place`.

    Raises:
        GraphoptError: the request or the input is at fault; nothing was written.
    """
    from graphopt.reporting.progress import Progress

    _, pipeline = plan(request)
    check(request)
    return _Run(request, pipeline, Stages(progress or Progress(quiet=True))).carry_out()


class _Run:
    """One request on its way through the stages."""

    bench: Workbench

    def __init__(self, request: Request, pipeline: Pipeline, stages: Stages) -> None:
        self.request = request
        self.pipeline = pipeline
        self.stages = stages
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.culprits: list[tuple[str, Culprit]] = []
        self.choices: list[Choice] = []
        self.left_out: frozenset[str] = frozenset()
        self.verification: dict[str, Any] | None = None
        self.session: dict[str, Any] | None = None

    def carry_out(self) -> Result:
        from graphopt.reporting.describe import describe, describe_interface

        request, stage = self.request, self.stages.stage
        with stage("load", f"loading {request.model.name}"):
            loaded = load(request)
            interface = describe_interface(loaded.graph, request.model)
            before = describe(loaded.graph, request.model)
        with contextlib.ExitStack() as stack:
            work = stack.enter_context(work_folder(before["bytes"], request.destination.parent))
            self.bench = Workbench(request, self.pipeline, loaded, self.stages, work)
            if request.verify != "off":
                with stage("verify", "finding samples"):
                    self._find_samples()
            candidate = self.bench.build(self._unmeasured())
            if request.verify != "off" and self.bench.samples:
                with stage("verify", "verifying"):
                    candidate = self._verified(candidate)
            quality = self.bench.quality(candidate)
            speed = None
            if request.bench:
                with stage("bench", "measuring"):
                    fastest, speed = self._fastest(candidate)
                    if quality is not None and fastest is not candidate:
                        quality = self.bench.quality(fastest)
                    candidate = fastest
                    tuned = self._tuned(candidate) if request.tune else None
            else:
                tuned = None
            with stage("save", f"saving {request.destination.name}"):
                self._save(candidate, tuned)
        after = describe(candidate.model.graph, request.destination)
        report = self._report(candidate, interface, before, after, speed, quality)
        return Result(report, self._exit_code(quality), candidate)

    def _unmeasured(self) -> Hold | None:
        """Passes that are worth it only where they are measured, in a run that measures nothing; None: there are none."""
        from graphopt.pipeline.runner import Hold

        if (self.request.bench and self.bench.samples) or self.request.passes is not None:
            return None
        self.left_out = frozenset(step.name for step in self.pipeline.steps if step.measured and step.unmeasured == "leave-out")
        return Hold(passes=self.left_out) if self.left_out else None

    def _save(self, candidate: Candidate, tuned: Tuned | None) -> None:
        """The model, and its settings where there are any; never a model beside the settings of another."""
        from graphopt.formats import save_model
        from graphopt.measurement.target import detect
        from graphopt.sessions import remove_settings, write_settings

        request = self.request
        remove_settings(request.destination)
        save_model(candidate.model, request.destination, in_place=request.in_place)
        if tuned is not None:
            target = {"runtime": runtime.version(), **detect(request.provider, request.threads).to_dict()}
            path = write_settings(request.destination, tuned.settings, target, tuned.figures())
            self.session = {"file": str(path), "settings": tuned.settings.to_dict(), **tuned.figures()}

    # --- verification -------------------------------------------------------------------------------------------

    def _find_samples(self) -> None:
        from graphopt.verification import Reference, load_samples, synthesize

        request, bench = self.request, self.bench
        try:
            bench.reference = Reference(request.model, threads=request.threads, provider=request.provider, seed=request.seed)
            if request.samples is not None:
                bench.samples = load_samples(request.samples, bench.loaded.graph)
                bench.reference.outputs(bench.samples[0])
                return
            found = synthesize(bench.loaded.graph, bench.reference.run, seed=request.seed, shapes=request.shapes or None)
        except GraphoptError as error:
            if request.samples is not None:
                raise
            self._unverified(str(error))
            return
        self.warnings.extend(found.warnings)
        bench.samples = found.samples
        if found.failure:
            self._unverified(found.failure)

    def _unverified(self, why: str) -> None:
        self.verification = {"verdict": "unverified", "samples": 0, "sizes": [], "outputs": [], "notes": [why]}
        self.warnings.append(f"not verified: {why}")

    def _verified(self, candidate: Candidate) -> Candidate:
        """The candidate if it verifies, else the best one without what made it differ."""
        if self.request.verify == "each":
            candidate = self._verified_step_by_step(candidate)
        reason, self.verification = self.bench.compare(candidate)
        if reason is None:
            return candidate
        return self._without_culprits(candidate, reason)

    def _verified_step_by_step(self, candidate: Candidate) -> Candidate:
        """Compare after every pass that changed something, in order; the first that differs is where bisection looks."""
        tested = 0
        while True:
            ends = _pass_ends(candidate)
            bad = None
            for end in ends[tested:-1]:
                prefix = self.bench.build(replace(candidate.hold, limit=end))
                reason, _ = self.bench.compare(prefix, final=False)
                if reason is not None:
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
        _, self.verification = self.bench.compare(search.candidate)
        for culprit in search.culprits:
            self.culprits.append(("different", culprit))
            if culprit.pass_name == "(none)":
                self.warnings.append(f"the model as loaded and saved, with no pass applied, already differs: {culprit.reason}")
            else:
                where = f" at {culprit.label}" if culprit.label else ""
                self.warnings.append(f"{culprit.pass_name}{where} was rolled back: {culprit.reason}")
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
                self.notes.append(f"a reproducer of the fault of {culprit.pass_name} is in {folder}")

    # --- speed --------------------------------------------------------------------------------------------------

    def _fastest(self, candidate: Candidate) -> tuple[Candidate, dict[str, Any] | None]:
        """The candidate with what measures fastest of its choices, without what made it slower than the original; its speed."""
        from graphopt.steering.choices import choose
        from graphopt.steering.neverslower import without_slowdown

        if not candidate.changed:
            self.notes.append("no pass changed the model, so there is no speed to compare")
            return candidate, None
        if not self.bench.samples:
            self.notes.append("speed was not measured: there are no samples to run the model on")
            return candidate, None
        chosen = candidate
        if self.request.passes is None:  # passes that were asked for by name are not left out for a shade of speed
            chosen, self.choices = choose(self.bench, candidate, self.pipeline.steps)
        found = without_slowdown(self.bench, chosen)
        for culprit in found.culprits:
            self.culprits.append(("slower", culprit))
            self.warnings.append(f"{culprit.pass_name} was rolled back: {culprit.reason}")
        if found.candidate is not candidate and self.request.verify != "off":
            reason, self.verification = self.bench.compare(found.candidate)
            if reason is not None:  # leaving a pass out can only expose a fault that another one hid
                return self._without_culprits(found.candidate, reason), None
        return found.candidate, found.speed

    def _tuned(self, candidate: Candidate) -> Tuned | None:
        """Settings of the session with which the result is faster than in a plain one, and computes the same."""
        from graphopt.steering.tuning import describe, tune

        request, bench = self.request, self.bench
        if not bench.samples:
            return None
        on_cpu = runtime.resolve_provider(request.provider) == runtime.CPU
        with bench.file(candidate) as path:
            tuned = tune(bench, path, threads=request.threads, cores=runtime.usable_cores(), on_cpu=on_cpu, run_ms=bench.run_ms(path))
        if tuned is None:
            return None
        bench.tell("verifying")
        reason, _ = bench.compare(candidate, final=False, settings=tuned.settings)
        if reason is not None:
            shown = describe(tuned.settings, Settings(threads=request.threads))
            self.warnings.append(f"a session with {shown} would be faster, but does not compute the same: {reason}")
            return None
        return tuned

    # --- quality and report -------------------------------------------------------------------------------------

    def _exit_code(self, quality: dict[str, Any] | None) -> int:
        if self.request.verify != "off" and (self.verification is None or self.verification["verdict"] in ("unverified", "different")):
            return 1
        over = quality is not None and quality["budget"] is not None and quality["loss"] > quality["budget"]
        return 1 if over else 0

    def _report(self, candidate: Candidate, interface, before, after, speed, quality) -> Report:
        from graphopt.measurement.target import detect
        from graphopt.reporting import PassRecord, Refusal, Report
        from graphopt.rewriting.changes import origin

        records = [
            PassRecord(
                r.name, r.effect, r.applied, [Refusal(x.node, x.reason) for x in r.refused], r.nodes_before, r.nodes_after, r.seconds,
                "no-change" if r.name in self.left_out else r.status, self._remark(r),
            )
            for r in candidate.runs
        ]  # fmt: skip
        provenance = [
            {"node": node.name, "from": list(names), "passes": list(passes)}
            for node in candidate.model.graph.graph.all_nodes()
            for names, passes in (origin(node),)
            if passes
        ]
        return Report(
            model=interface,
            target=detect(self.request.provider, self.request.threads).to_dict(),
            before=before,
            after=after,
            passes=records,
            output=str(self.request.destination),
            verification=self.verification,
            speed=speed,
            quality=quality,
            seconds=self.stages.seconds,
            notes=[*candidate.notes, *self.notes, *_larger(before, after, speed)],
            warnings=self.warnings,
            extra={
                "preset": self.pipeline.name,
                "choices": [choice.to_dict() for choice in self.choices],
                "session": self.session,
                "provenance": provenance,
            },
        )

    def _remark(self, run: PassRun) -> str:
        """What is to be said of a pass beyond its figures."""
        if run.note:
            return run.note
        for kind, culprit in self.culprits:
            if culprit.pass_name == run.name:
                where = f" at {culprit.label}" if culprit.label else ""
                return f"rolled back{where} ({kind}): {culprit.reason}"
        if run.name in self.left_out:
            return "left out: it pays only on some targets, and nothing was measured"
        return "; ".join([*(c.text() for c in self.choices if c.pass_name == run.name), *run.notes])


def _larger(before: Mapping[str, Any], after: Mapping[str, Any], speed: Mapping[str, Any] | None) -> list[str]:
    """Why the result has more nodes than the model, where it has."""
    more = after["nodes"] - before["nodes"]
    if more <= 0:
        return []
    why = f": it measures {speed['ratio']:.2f}x faster so" if speed is not None and speed["faster"] else ""
    return [f"the result has {more:,} nodes more than the model{why}"]


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
