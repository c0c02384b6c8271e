"""One run from a model file to an optimized one: load, pipeline, verify, measure, save, report."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt import runtime
from graphopt.errors import GraphoptError, OptionError
from graphopt.findings import Findings
from graphopt.request import Request, alternatives, calibration_of, check, load, plan
from graphopt.settings import Settings
from graphopt.verifying import Verifying
from graphopt.workbench import Stages, Workbench, work_folder

if TYPE_CHECKING:
    from graphopt.pipeline.presets import Pipeline
    from graphopt.pipeline.runner import Candidate, Hold
    from graphopt.reporting import Report
    from graphopt.reporting.progress import Progress
    from graphopt.rewriting.base import Effect
    from graphopt.steering.alternatives import Alternative
    from graphopt.steering.tuning import Tuned
    from graphopt.verification import Sample
    from graphopt.verification.original import Original

_SECONDS = 15.0  # for the speed of a baked result
_EVALUATED = 16  # calibration samples set aside that are verified on, at most
_BAKED_SECONDS = 6.0  # for it beside the result that was baked


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

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidate alone; of a run that went through several kinds of graph there are more."""
        return (self.candidate,)


@dataclass
class Judge:
    """What a candidate is compared with, and timed on, where that is not the model's own file.

    Attributes:
        original: says what is right.
        samples: inputs.
        floor: the weakest effect that may be claimed: what was done to the model before it became a file.
    """

    original: Original
    samples: list[Sample]
    floor: Effect


def optimize(request: Request, *, progress: Progress | None = None, judge: Judge | None = None) -> Result:
    """Carry a request out; the input is left alone unless it says `in_place`. `judge`: instead of the model itself.

    Raises:
        GraphoptError: the request or the input is at fault; nothing was written.
    """
    from graphopt.reporting.progress import Progress

    registry, whole = plan(request)
    pipeline = whole.of_kind("onnx")
    # With a judge this is the second half of a run on a torch program, which had those passes in its first.
    if judge is None and request.passes is not None and len(pipeline.steps) < len(whole.steps):
        other = next(step.name for step in whole.steps if "onnx" not in step.kinds)
        raise OptionError(f"pass {other!r} works on torch programs alone")
    check(request)
    others = [other.of_kind("onnx") for other in alternatives(request, registry, pipeline)]
    return Run(request, pipeline, others, Stages(progress or Progress(quiet=True)), judge).carry_out()


class Run(Verifying):
    """One request on its way through the stages."""

    bench: Workbench

    def __init__(
        self, request: Request, pipeline: Pipeline, others: list[Pipeline], stages: Stages, judge: Judge | None = None
    ) -> None:  # fmt: skip
        self.request = request
        self.judge = judge
        self.pipeline = pipeline
        self.others = others
        self.stages = stages
        self.found = Findings()

    def carry_out(self) -> Result:
        from graphopt.formats import load_model
        from graphopt.reporting.describe import describe, describe_interface

        request, stage, found = self.request, self.stages.stage, self.found
        with stage("load", f"loading {request.model.name}"):
            loaded = load(request)
            interface = describe_interface(loaded.graph, request.model)
            before = describe(loaded.graph, request.model)
        with work_folder(before["bytes"], request.destination.parent) as work:
            self.bench = Workbench(request, self.pipeline, loaded, self.stages, work)
            if request.verify != "off" or self.judge is not None:
                with stage("verify", "finding samples"):
                    self._find_samples()
            if self._calibrates():
                with stage("passes", "finding calibration samples"):
                    self._find_calibration(work)
            candidate = self.bench.build(self._unmeasured())
            if request.verify != "off" and self.bench.samples:
                with stage("verify", "verifying"):
                    candidate = self._verified(candidate)
            tuned = None
            if request.bench:
                with stage("bench", "measuring"):
                    candidate = self._fastest(candidate)
            if request.bake:
                with stage("bench", "baking"):
                    candidate = self._baked(candidate)
            elif request.bench and self.others and self.bench.samples:
                with stage("bench", "trying other presets"):
                    found.alternatives = self._alternatives(candidate)
            if request.bench and request.tune:
                with stage("bench", "tuning the session"):
                    tuned = self._tuned(candidate)
            found.quality = self.bench.quality(candidate)
            self._integers(candidate)
            self._precision(candidate)
            with stage("save", f"saving {request.destination.name}"):
                self._save(candidate, tuned)
        if found.baked is not None:  # what it refers to is gone with the folder it was baked in
            candidate = replace(candidate, model=load_model(request.destination))
        after = describe(candidate.model.graph, request.destination)
        report = found.report(request, self.pipeline.name, candidate, interface, before, after, self.stages.seconds)
        return Result(report, found.exit_code(request), candidate)

    def _unmeasured(self) -> Hold | None:
        """Passes that are worth it only where they are measured, in a run that measures nothing; None: there are none."""
        from graphopt.pipeline.runner import Hold

        if (self.request.bench and self.bench.samples) or self.request.passes is not None:
            return None
        provider = runtime.short_name(self.request.provider)
        self.found.left_out = frozenset(
            step.name for step in self.pipeline.steps
            if step.measured and step.unmeasured == "leave-out" and provider not in step.kept_on
        )  # fmt: skip
        return Hold(passes=self.found.left_out) if self.found.left_out else None

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
            self.found.session = {"file": str(path), "settings": tuned.settings.to_dict(), **tuned.figures()}

    # --- verification -------------------------------------------------------------------------------------------

    def _find_samples(self) -> None:
        from graphopt.verification import Reference, load_samples, synthesize

        request, bench = self.request, self.bench
        if self.judge is not None:
            bench.reference, bench.samples, bench.floor = self.judge.original, self.judge.samples, self.judge.floor
            return
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
            self.found.unverified(str(error))
            return
        self.found.warnings.extend(found.warnings)
        bench.samples = found.samples
        if found.failure:
            self.found.unverified(found.failure)

    def _integers(self, candidate: Candidate) -> None:
        """Say which integer kernels the runtime makes of what passes quantized."""
        from graphopt.measurement import asks_for_integers, on_integers

        if asks_for_integers(n.op_type for n in candidate.model.graph.graph.all_nodes()):
            final = self.bench.graph_of(candidate)
            if final is not None:
                self.found.notes.append(on_integers(final))

    def _calibrates(self) -> bool:
        return any(step.calibrates for pipeline in (self.pipeline, *self.others) for step in pipeline.steps)

    def _find_calibration(self, folder: Path) -> None:
        """Calibration samples for the passes; where nobody gave others, those set aside of them are what is verified on."""
        from graphopt.verification import Reference

        request, bench = self.request, self.bench
        reference = bench.reference or Reference(request.model, threads=request.threads, provider=request.provider, seed=request.seed)
        calibration = calibration_of(request, bench.loaded.graph, reference, folder=folder, shown=self.stages.within)
        reference.close()
        if self.judge is None and request.samples is None and request.verify != "off" and len(calibration.evaluation):
            bench.samples = list(itertools.islice(calibration.evaluation, _EVALUATED))
            if self.found.verification is not None:  # none could be synthesized, but none are needed
                self.found.verification = None
                self.found.warnings = [w for w in self.found.warnings if not w.startswith("not verified")]
        bench.tools = replace(bench.tools, calibration=calibration)
        self.found.warnings.extend(calibration.warnings())
        self.found.calibration = calibration

    # --- speed --------------------------------------------------------------------------------------------------

    def _fastest(self, candidate: Candidate) -> Candidate:
        """The candidate with what measures fastest of its choices, and without what made it slower than the original."""
        from graphopt.steering.choices import choose
        from graphopt.steering.neverslower import without_slowdown

        if not candidate.changed:
            self.found.notes.append("no pass changed the model, so there is no speed to compare")
            return candidate
        if not self.bench.samples:
            self.found.notes.append("speed was not measured: there are no samples to run the model on")
            return candidate
        chosen = candidate
        if self.request.passes is None:  # passes that were asked for by name are not left out for a shade of speed
            chosen, self.found.choices = choose(self.bench, candidate, self.pipeline.steps)
            chosen = self._placed(chosen)
        keep = frozenset(step.name for step in self.pipeline.steps if step.smaller)
        outcome = without_slowdown(self.bench, chosen, keep=keep)
        if outcome.culprits and chosen.hold.applications:  # without these passes the numbers of applications are others
            dropped = outcome.culprits
            again = self._placed(self.bench.build(replace(outcome.candidate.hold, applications=frozenset(), limit=None)))
            outcome = without_slowdown(self.bench, again, keep=keep)
            outcome.culprits[:0] = dropped
        for culprit in outcome.culprits:
            self.found.rolled_back("slower", culprit)
        if outcome.loss:
            self.found.warnings.append(outcome.loss)
        if outcome.candidate is not candidate and self.request.verify != "off":
            reason, self.found.verification = self.bench.compare(outcome.candidate)
            if reason is not None:  # leaving a pass out can only expose a fault that another one hid
                return self._mended(outcome.candidate, reason)
        self.found.speed = outcome.speed
        return outcome.candidate

    def _baked(self, candidate: Candidate) -> Candidate:
        """The graph that the runtime makes of the candidate, where that computes the same and is not slower."""
        from graphopt.measurement.target import detect
        from graphopt.rewriting.base import Effect
        from graphopt.steering.baking import bake

        request, bench, found = self.request, self.bench, self.found
        target = detect(request.provider, request.threads)
        model, about = bake(candidate.model.graph, bench.keep(candidate), target)
        baked = replace(candidate, model=model)
        verification, speed = found.verification, found.speed
        if request.verify != "off" and bench.samples:
            reason, verification = bench.compare(baked, at_least=Effect.ROUNDING)
            if reason is not None:
                return self._unbaked(candidate, f"as the runtime writes it, it does not compute the same: {reason}")
        if request.bench and bench.samples:
            beside = bench.race(candidate, baked, _BAKED_SECONDS, 1.0)
            measured = bench.speed_of(baked, _SECONDS)
            if beside.slower or measured.slower:
                return self._unbaked(candidate, f"it is slower so: {min(beside.ratio, measured.ratio):.3f}x")
            speed = measured.to_dict() | {"shapes": bench.shapes()}
        found.verification, found.speed, found.baked = verification, speed, about
        where = ", ".join(f"{key} {value}" for key, value in about.items())
        found.notes.append(f"baked for {where}: elsewhere it may not load, or be slow")
        return baked

    def _unbaked(self, candidate: Candidate, why: str) -> Candidate:
        self.found.unreached = True
        self.found.warnings.append(f"the result was not baked: {why}")
        return candidate

    def _alternatives(self, candidate: Candidate) -> list[Alternative]:
        """What other presets would gain."""
        from graphopt.steering.alternatives import look

        expected = sum(run.seconds for run in candidate.runs) + self.bench.compare_seconds
        return look(self.bench, candidate, self.others, expected_seconds=expected)

    def _tuned(self, candidate: Candidate) -> Tuned | None:
        """Settings of the session with which the result is faster than in a plain one, and computes the same."""
        from graphopt.steering.tuning import describe, tune

        request, bench = self.request, self.bench
        if not bench.samples:
            return None
        with bench.file(candidate) as path:
            taken = bench.latency(path)
            tuned = tune(
                bench, path, threads=request.threads, cores=runtime.usable_cores(), run_ms=taken.ms,
                session_ms=taken.session_ms, with_threads=bench.threads_tell(),
            )  # fmt: skip
        if tuned is None:
            return None
        bench.tell("verifying")
        reason, _ = bench.compare(candidate, final=False, settings=tuned.settings)
        if reason is not None:
            shown = describe(tuned.settings, Settings(threads=request.threads))
            self.found.warnings.append(f"a session with {shown} would be faster, but does not compute the same: {reason}")
            return None
        return tuned
