"""One run on a torch program: capture, passes, verification beside the eager module, and out as `.pt2`, ONNX or a module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import InputError, OptionError
from graphopt.extras import require_torch
from graphopt.pipeline.bisect import without_culprits
from graphopt.programs.capture import capture
from graphopt.programs.captured import Captured
from graphopt.programs.describe import describe_captured, describe_program
from graphopt.programs.emit import to_onnx, to_pt2
from graphopt.programs.onnx_ready import stateless
from graphopt.programs.sampling import given_samples, make_samples
from graphopt.programs.verify import EagerModule
from graphopt.programs.workbench import ProgramBench, strongest
from graphopt.request import Request, check_destination, check_values, plan
from graphopt.rewriting.base import Effect
from graphopt.run import Judge, Run, optimize
from graphopt.verification import verify
from graphopt.workbench import Stages, work_folder

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from graphopt.pipeline.presets import Pipeline
    from graphopt.pipeline.runner import Candidate, Hold
    from graphopt.reporting import Report
    from graphopt.reporting.progress import Progress
    from graphopt.run import Result

_SUFFIXES = (".onnx", ".pt2")
_SECONDS = 12.0  # for the table of speeds


@dataclass
class Optimized:
    """What came of a run on a torch program.

    Attributes:
        report: what the terminal and the JSON show.
        exit_code: 0: done and verified; 1: done, but not verified, or not within what was asked.
        program: the rewritten program, of `torch.export`.
        module: the same as a module, called as the one that was given.
        onnx: the ONNX model that was written, if one was.
        candidates: how the program, and then the ONNX model, came about.
    """

    report: Report
    exit_code: int
    program: ExportedProgram
    module: torch.nn.Module
    onnx: Path | None
    candidates: tuple[Candidate, ...]


def optimize_program(
    source: Any,
    request: Request,
    *,
    destination: Path | None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    eval: bool = False,
    outputs: list[str] | None = None,
    compile: bool = False,
    progress: Progress | None = None,
) -> Optimized:
    """Carry a request out on a module, a program, or a path to one; neither is changed.

    Args:
        source, example_inputs, dynamic_shapes, eval, outputs: as `capture` takes them.
        request: what is asked for; its `model` is what the report calls the source.
        destination: where the result goes, by its suffix as ONNX or as a program; None: nowhere.
        compile: time torch.compile too.

    Raises:
        GraphoptError: the request, the module or its inputs are at fault; nothing was written.
    """
    from graphopt.reporting.progress import Progress

    require_torch()
    refuse(request, destination)
    _, pipeline = plan(request)
    check_values(request)
    if destination is not None:
        check_destination(destination, request.model, in_place=request.in_place)
    run = ProgramRun(request, pipeline, destination, Stages(progress or Progress(quiet=True)), compile=compile)
    return run.on(lambda: capture(source, example_inputs, dynamic_shapes=dynamic_shapes, eval=eval, outputs=outputs))


def refuse(request: Request, destination: Path | None) -> None:
    """Turn down options that make no sense of a torch program.

    Raises:
        OptionError: the first of them.
    """
    to_onnx = destination is not None and destination.suffix.lower() == ".onnx"
    if destination is not None and destination.suffix.lower() not in _SUFFIXES:
        raise OptionError(f"{destination}: the name of the result must end in {' or '.join(_SUFFIXES)}")
    refused = (
        ("--shape", bool(request.shapes), "the shapes of a torch program are those of its example inputs and dynamic shapes"),
        ("--fix-initializers", request.fix_initializers, "a torch program has no initializers that a caller may override"),
        ("--metric", request.metric is not None, "measures of quality are taken of ONNX models"),
        ("--calibration", request.calibration is not None and not to_onnx, "passes that calibrate work on ONNX models"),
        ("--bake", request.bake and not to_onnx, "only an ONNX model can be baked"),
        ("--provider", request.provider != "cpu" and not to_onnx, "only an ONNX model runs on a provider of ONNX Runtime"),
        ("--in-place", request.in_place and (to_onnx or request.model.suffix.lower() != ".pt2"), "there is no file to replace"),
    )
    for option, given, why in refused:
        if given:
            raise OptionError(f"{option}: {why}")


class ProgramRun(Run):
    """One request on its way through the stages, on a torch program."""

    bench: ProgramBench  # type: ignore[assignment]

    def __init__(
        self, request: Request, pipeline: Pipeline, destination: Path | None, stages: Stages, *, compile: bool = False
    ) -> None:  # fmt: skip
        self.to_onnx = destination is not None and destination.suffix.lower() == ".onnx"
        wanted = not self.to_onnx or request.passes is not None
        ours = pipeline.of_kind("torch").mapped(lambda step: step if wanted or step.before_export else None)
        super().__init__(request, ours, [], stages)
        self.destination, self.compile = destination, compile
        self._stateless: EagerModule | None = None
        self._onnx_passes = {step.name for step in pipeline.steps if "onnx" in step.kinds}
        if request.passes is not None and not self.to_onnx and len(ours.steps) < len(pipeline.steps):
            other = next(step.name for step in pipeline.steps if "torch" not in step.kinds)
            raise OptionError(f"pass {other!r} works on ONNX graphs alone: give an output that ends in .onnx")

    def on(self, captured: Any) -> Optimized:
        """The run, on what `captured` gives."""
        request, stage = self.request, self.stages.stage
        with stage("load", f"capturing {request.model.name}"):
            found: Captured = stateless(captured()) if self.to_onnx else captured()
        self.captured = found
        self.bench = ProgramBench(request, self.pipeline, found, self.stages)
        if request.verify != "off" or request.bench:
            with stage("verify", "finding samples"):
                self._find_samples()
        candidate = self.bench.build(self._unmeasured())
        if request.verify != "off":
            with stage("verify", "verifying"):
                candidate = self._verified(candidate)
        return self._as_onnx(candidate) if self.to_onnx else self._as_program(candidate)

    def _unmeasured(self) -> Hold | None:
        """On the way to ONNX nothing is measured before it is there."""
        if not self.to_onnx:
            return super()._unmeasured()
        from graphopt.pipeline.runner import Hold

        if self.request.passes is not None:
            return None
        self.found.left_out = frozenset(step.name for step in self.pipeline.steps if step.measured and step.unmeasured == "leave-out")
        return Hold(passes=self.found.left_out) if self.found.left_out else None

    def _find_samples(self) -> None:
        bench, request = self.bench, self.request
        if request.samples is not None:
            bench.samples = given_samples(self.captured, request.samples)
            bench.reference.outputs(bench.samples[0])
        else:
            bench.samples, warnings = make_samples(self.captured, bench.reference.run, seed=request.seed)
            self.found.warnings.extend(warnings)
        bench.settle()

    def _mended(self, candidate: Candidate, reason: str) -> Candidate:
        """Of a program what is at fault is left out: there is no search for what is within a budget."""
        return self._without_culprits(candidate, reason)

    def _reproducers(self, culprits: Any, failing: Any) -> None:
        """None: what is at fault is named, and the program is the user's own."""

    # --- a program comes out ------------------------------------------------------------------------------------

    def _as_program(self, candidate: Candidate) -> Optimized:
        request, found, stage = self.request, self.found, self.stages.stage
        speeds: dict[str, Any] = {}
        if request.bench:
            with stage("bench", "measuring"):
                candidate = self._fastest(candidate)
                speeds = self._speeds(candidate, None)
        program = self.bench.program(candidate)
        if self.destination is not None:
            with stage("save", f"saving {self.destination.name}"):
                to_pt2(program, self.destination, self.captured, source=self._file(), in_place=request.in_place)
        report = found.report(
            replace(request, output=self.destination), self.pipeline.name, candidate, self._interface(), self._before(),
            describe_program(program, self.destination if self._file() is not None else None), self.stages.seconds,
        )  # fmt: skip
        report.output = None if self.destination is None else str(self.destination)
        report.notes[:0] = self.captured.notes
        report.extra |= {"parameters": self._parameters(candidate), "speeds": speeds}
        return Optimized(report, found.exit_code(request), program, self.bench.module(candidate), None, (candidate,))

    def _speeds(self, candidate: Candidate, onnx: Path | None) -> dict[str, Any]:
        """Every way of running, beside the eager module."""
        from graphopt.programs.measure import speeds

        speed = self.found.speed
        if onnx is None and not self.compile:
            if speed is None:
                return {}
            return {"eager": {"ms": speed["before_ms"]}, "optimized": {"ms": speed["after_ms"], **speed}}
        request = self.request
        rows, notes = speeds(
            self.captured, self.bench.module(candidate), self.bench.samples[0].feeds, onnx=onnx, compile=self.compile,
            threads=request.threads, provider=request.provider, seconds=_SECONDS,
        )  # fmt: skip
        self.found.notes += notes
        return rows

    # --- an ONNX model comes out --------------------------------------------------------------------------------

    def _as_onnx(self, candidate: Candidate) -> Optimized:
        """The program as an ONNX model, and that through the same pipeline, judged by the eager module all the way."""
        assert self.destination is not None
        found = self.found
        with work_folder(self._before()["bytes"], self.destination.parent) as folder:
            path = folder / self.destination.name
            candidate = self._emitted(candidate, path)
            made = self._optimized(candidate, path)
            if (made.report.verification or {}).get("verdict") == "different" and candidate.changed:
                # The pipeline on ONNX can only roll its own passes back. What of the program's passes is it then?
                wrong = "; ".join(o.get("reason", "") for o in made.report.verification["outputs"] if not o["ok"])
                without = self._without(candidate, wrong or "the outputs differ", folder)
                if without is not None:
                    candidate = self._emitted(without, path)
                    made = self._optimized(candidate, path)
            speeds: dict[str, Any] = {}
            if self.request.bench:
                with self.stages.stage("bench", "measuring beside torch"):
                    speeds = self._speeds(candidate, self.destination)
        report = made.report
        if speeds:
            self._judge_speed(speeds["onnxruntime"])
            report.speed = speeds["onnxruntime"] | {"shapes": self.bench.shapes(), "beside": "the eager module"}
        exported, report.before = report.before, self._before()
        report.model = self._interface()
        report.passes = [*found.records(candidate), *(p for p in report.passes if p.name in self._onnx_passes)]
        report.notes[:0] = [*self.captured.notes, *found.notes]
        report.warnings[:0] = found.warnings
        for name, seconds in self.stages.seconds.items():
            report.seconds[name] = report.seconds.get(name, 0.0) + seconds
        program = self.bench.program(candidate)
        report.extra |= {
            "parameters": self._parameters(candidate), "speeds": speeds, "program": describe_program(program), "exported": exported,
        }  # fmt: skip
        code = max(made.exit_code, 1 if found.unreached else 0)
        return Optimized(report, code, program, self.bench.module(candidate), self.destination, (candidate, made.candidate))

    def _emitted(self, candidate: Candidate, path: Path) -> Candidate:
        """Write the candidate as ONNX; where it cannot be, the best one that can."""
        with self.stages.stage("save", "exporting to ONNX"):
            try:
                self.found.notes += to_onnx(self.bench.program(candidate), self.captured, path).notes
                return candidate
            except InputError as error:
                if not candidate.changed:
                    raise
                without = self._without(candidate, str(error), path.parent)
                if without is None:
                    raise
                self.found.notes += to_onnx(self.bench.program(without), self.captured, path).notes
                return without

    def _optimized(self, candidate: Candidate, path: Path) -> Result:
        judge = Judge(self._original(), self.bench.samples, strongest(candidate, Effect.ROUNDING))
        request = replace(self.request, model=path, output=self.destination, samples=None)
        return optimize(request, progress=self.stages.progress, judge=judge)

    def _original(self) -> EagerModule:
        """The eager module, its outputs alone: an ONNX model has no buffers that change."""
        if not self.bench.reference.caller.stateful:
            return self.bench.reference
        if self._stateless is None:
            self._stateless = EagerModule(self.captured, threads=self.request.threads, seed=self.request.seed, state=False)
        return self._stateless

    def _without(self, candidate: Candidate, reason: str, folder: Path) -> Candidate | None:
        """The candidate without the pass that makes its ONNX model wrong; None where none is at fault."""

        def wrong(trial: Candidate) -> str | None:
            path = folder / "trial" / "trial.onnx"
            path.parent.mkdir(exist_ok=True)
            try:
                to_onnx(self.bench.program(trial), self.captured, path)
            except InputError as error:
                return str(error)
            if self.request.verify == "off":
                return None
            return verify(
                None, path, self.bench.samples, effect=strongest(trial, Effect.ROUNDING).value, tolerance=self.request.tolerance,
                budget=self.request.accepted, threads=self.request.threads, provider=self.request.provider,
                reference=self._original(), coverage=False,
            ).reason  # fmt: skip

        search = without_culprits(self.bench.build, wrong, candidate, reason)
        if any(culprit.pass_name == "(none)" for culprit in search.culprits):
            self.found.warnings.append(f"the ONNX model that torch.onnx makes of the program differs, with no pass applied: {reason}")
            return None
        for culprit in search.culprits:
            self.found.rolled_back("different", culprit)
        return search.candidate

    def _judge_speed(self, speed: dict[str, Any]) -> None:
        if speed["slower"]:
            self.found.warnings.append(f"ONNX Runtime runs the result slower than torch runs the module: {speed['ratio']:.3f}x")

    # --- for the report -----------------------------------------------------------------------------------------

    def _interface(self) -> dict[str, Any]:
        return describe_captured(self.captured, str(self.request.model))

    def _before(self) -> dict[str, Any]:
        return describe_program(self.captured.program, self._file())

    def _file(self) -> Path | None:
        path = self.request.model
        return path if path.suffix.lower() == ".pt2" and path.is_file() else None

    def _parameters(self, candidate: Candidate) -> dict[str, list[str]]:
        """Old names of parameters and buffers, each with the new ones that it went into: its own where it was kept."""
        found: dict[str, list[str]] = {name: [] for name in self.captured.program.state_dict}
        for new, olds in candidate.model.graph.parameters.items():
            for old in olds:
                found.setdefault(old, []).append(new)
        return found
