"""One compression: lossless passes first, then shares tried out, the best one quantized where that is wanted, and written."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.compression.gradual import gradual
from graphopt.compression.journal import Journal
from graphopt.compression.judging import OUTPUTS, Judge
from graphopt.compression.request import CompressionRequest
from graphopt.compression.search import Found, Trial, search
from graphopt.compression.trials import SHARE, Parts, Trials
from graphopt.errors import InputError, OptionError
from graphopt.findings import Findings
from graphopt.request import Request, check, plan
from graphopt.run import Result, optimize
from graphopt.workbench import Stages, work_folder

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.pipeline.presets import Pipeline
    from graphopt.pipeline.runner import Candidate
    from graphopt.reporting.progress import Progress

_FEWEST = 8  # samples below which a warning is due
_ASIDE = 0.3  # of the samples: half of them to decide by, half to judge by in the end


def compress(request: CompressionRequest, *, progress: Progress | None = None) -> Result:
    """Carry a compression out; the input is left alone unless the request says `in_place`.

    The exit code is 1 where no share was within the budget, and the model is then written with lossless passes alone,
    where the speed that was wanted was not reached, or where the final figures are beyond the budget.

    Raises:
        GraphoptError: the request or the input is at fault; nothing was written.
    """
    from graphopt.reporting.progress import Progress

    request.check()
    _, pipeline = plan(request.run)
    if not any(SHARE in {o.name for o in step.options()} for step in pipeline.steps):
        raise OptionError(f"no pass of the pipeline ({pipeline.name}) cuts: none has an option {SHARE!r}")
    if request.tune:
        from graphopt.extras import require_torch

        require_torch("tuning")
    if request.then is not None:
        plan(_following(request, request.run))  # so that a preset that there is not is told of before any work
    check(request.run)
    return _Compression(request, pipeline, Stages(progress or Progress(quiet=True)), progress).carry_out()


class _Compression:
    def __init__(self, request: CompressionRequest, pipeline: Pipeline, stages: Stages, progress: Progress | None) -> None:
        self.request, self.pipeline, self.stages, self.progress = request, pipeline, stages, progress
        self.found = Findings()

    def carry_out(self) -> Result:
        from graphopt.formats import load_model, save_model
        from graphopt.reporting.describe import describe, describe_interface

        request, run, stage = self.request, self.request.run, self.stages.stage
        with stage("load", f"loading {run.model.name}"):
            loaded = load_model(run.model)
            interface, before = describe_interface(loaded.graph, run.model), describe(loaded.graph, run.model)
            self.parts = self._parts(loaded.graph)
        with work_folder(before["bytes"], run.destination.parent) as work:
            with stage("passes", "lossless passes"):
                base = self._base(work / "base.onnx")
            with stage("verify", "judging the original"):
                judge = Judge(run, self.parts.judged, "validation")
            journal = Journal(request.journal_folder, self._key(), kept=request.journal is not None)
            if journal.resumed:
                self.found.notes.append(f"{journal.resumed} trials were there already in {journal.folder}")
            trials = Trials(request, self.pipeline, work / "base.onnx", self.parts, judge, journal, self.stages)
            with stage("bench", "trying shares"):
                self.strategy = request.strategy or ("gradual" if trials.fault is None else "at-once")
                if self.strategy == "gradual":
                    found = gradual(trials.attempt, request.budget_of_cuts, target=request.target, trials=request.trials)
                else:
                    found = search(trials.at_once, request.budget_of_cuts, target=request.target, trials=request.trials)
            best = found.best
            candidate, chosen = (base, work / "base.onnx") if best is None else (self._lineage(trials, journal, best, base), best.path)
            self._tell(found, trials)
            if request.then is not None:
                chosen, candidate = self._then(chosen, candidate, best, work / "then.onnx")
            with stage("verify", "judging the result"):
                self.found.verification = self._verification(chosen, lossy=chosen != work / "base.onnx")
                final = self._final(chosen, best)
            if request.then is not None:
                self.found.speed = trials.speed(chosen).to_dict()
            with stage("save", f"saving {run.destination.name}"):
                save_model(load_model(chosen), run.destination, in_place=run.in_place)
            journal.close()
        after = describe(load_model(run.destination).graph, run.destination)
        report = self.found.report(
            replace(run, budget=request.budget), self.pipeline.name, candidate, interface, before, after, self.stages.seconds
        )
        report.extra["compression"] = self._story(found, trials) | {"final": final}
        return Result(report, self.found.exit_code(replace(run, budget=request.budget)), candidate)

    # --- before the trials --------------------------------------------------------------------------------------

    def _parts(self, model: ir.Model) -> Parts:
        """The samples in three parts, drawn once."""
        from graphopt.calibration import open_source, split

        source = open_source(self.request.data, model)
        taught, aside = split(source, self.request.run.seed, _ASIDE)
        judged, tested = split(aside, self.request.run.seed, 0.5)
        if not len(judged):
            raise InputError(f"{source.description}: {len(source)} samples; at least two are needed, one of them to judge on")
        if len(source) < _FEWEST:
            self.found.warnings.append(f"{len(source)} samples are few: what is fitted to them may fit nothing else")
        if not len(tested):
            self.found.warnings.append(
                "there are too few samples for a part that decides nothing: the final figures are those that decided"
            )
        return Parts(taught, judged, tested)

    def _base(self, path: Path) -> Candidate:
        """The model after lossless passes, verified: cuts start from there, where normalizations are weights."""
        plain = replace(
            self.request.run, output=path, preset=self.request.lossless, passes=None, options={}, skip=(), bench=False, budget=None,
            metric=None, in_place=False,
        )  # fmt: skip
        result = optimize(plain, progress=self.progress)
        self.found.warnings += result.report.warnings
        return result.candidate

    def _key(self) -> dict[str, Any]:
        """All that decides what a trial comes to."""
        import hashlib

        request, run = self.request, self.request.run
        with run.model.open("rb") as file:
            model = hashlib.file_digest(file, "sha256").hexdigest()
        samples = hashlib.sha256()
        for sample in self.parts.judged:
            for name, array in sample.feeds.items():
                samples.update(name.encode() + bytes(memoryview(array)) if array.dtype.kind != "O" else name.encode())
        return {
            "model": model, "data": request.data, "samples": samples.hexdigest(), "passes": [str(step) for step in self.pipeline.steps],
            "metric": run.metric, "threads": run.threads, "provider": run.provider, "seed": run.seed, "recover": request.recover,
            "tune": request.tune, "tuning": vars(request.tuning), "lossless": request.lossless,
        }  # fmt: skip

    # --- after them ---------------------------------------------------------------------------------------------

    def _lineage(self, trials: Trials, journal: Journal, best: Trial, base: Candidate) -> Candidate:
        """The steps that led to a trial, as one record of passes: those without loss, then each cut."""
        starts = {number: key for key, trial in journal.trials.items() if (number := journal.number(trial)) is not None}
        by_number = {journal.number(trial): trial for trial in journal.trials.values()}
        steps: list[Candidate] = []
        number = journal.number(best)
        while number is not None:
            share, parent = starts[number]
            steps.append(trials.cut(share, by_number.get(parent)))
            number = parent
        last = steps[0]
        return replace(last, runs=[*base.runs, *(run for step in reversed(steps) for run in step.runs)])

    def _then(self, chosen: Path, candidate: Candidate, best: Trial | None, path: Path) -> tuple[Path, Candidate]:
        """The preset that follows, on samples that were learned from, within what is left of the budget."""
        request, run = self.request, self.request.run
        loss = max(best.loss, 0.0) if best is not None else 0.0
        left = 1 - (1 - request.budget) / (1 - loss) if run.metric is not None else math.sqrt(max(request.budget**2 - loss**2, 0.0))
        after = replace(_following(request, run), model=chosen, output=path, budget=left)
        if any(step.calibrates for step in plan(after)[1].steps):
            after = replace(after, calibration=self.parts.taught)
        result = optimize(after, progress=self.progress)
        self.found.warnings += result.report.warnings
        self.found.notes += [f"{request.then}: {note}" for note in result.report.notes]
        return path, replace(result.candidate, runs=[*candidate.runs, *result.candidate.runs])

    def _verification(self, path: Path, *, lossy: bool) -> dict[str, Any]:
        """That names, types and shapes are kept and nothing is NaN, and how far the outputs moved."""
        from graphopt.verification import verify

        run = self.request.run
        samples = [s for _, s in zip(range(4), self._last(), strict=False)]
        effect = "lossy" if lossy else "rounding"
        return verify(run.model, path, samples, effect=effect, budget=math.inf, threads=run.threads, provider=run.provider).to_dict()

    def _last(self) -> Any:
        """The samples that nothing was learned from and nothing decided by, where there are any."""
        return self.parts.tested if len(self.parts.tested) else self.parts.judged

    def _final(self, path: Path, best: Trial | None) -> dict[str, Any]:
        """What the result loses on the part that nothing else touched, and how that compares with what decided."""
        request, run = self.request, self.request.run
        test = Judge(run, self._last(), "test")
        quality = test.quality(path)
        loss = test.loss(quality)
        if run.metric is not None:
            self.found.quality = {"metric": run.metric, "before": test.before, "after": quality, "loss": loss, "budget": request.budget}
        elif not loss <= request.budget:
            self.found.unreached = True
            self.found.warnings.append(f"on samples that decided nothing it loses {loss:.2%}, beyond the budget of {request.budget:.2%}")
        decided = None if best is None else best.loss
        return {"loss": loss, "decided_by": decided, "gap": None if decided is None else loss - decided}

    # --- what is told -------------------------------------------------------------------------------------------

    def _tell(self, found: Found, trials: Trials) -> None:
        request, best = self.request, found.best
        if trials.fault is not None and self.request.tune is not False:
            self.found.warnings.append(f"what is left was not tuned: {trials.fault}")
        if best is None:
            self.found.unreached = True
            least = min(found.trials, key=lambda t: t.loss)
            what = f"even {least.share:.0%} loses {least.loss:.2%}, beyond the budget of {request.budget_of_cuts:.2%}"
            self.found.warnings.append(f"nothing was cut: {what}")
            return
        if not any(t.detail["cut"] for t in found.trials):
            self.found.unreached = True
            self.found.warnings.append("nothing could be cut: see what the passes refused")
        elif request.target is not None and best.ratio < request.target:
            self.found.unreached = True
            self.found.warnings.append(f"the target of {request.target:g}x was not reached within the budget: {best.ratio:.2f}x")
        self.found.speed = best.detail["speed"]

    def _story(self, found: Found, trials: Trials) -> dict[str, Any]:
        parts, best = self.parts, found.best
        return {
            "share": None if best is None else best.share,
            "strategy": self.strategy,
            "budget": self.request.budget,
            "target": self.request.target,
            "judged_by": self.request.run.metric or OUTPUTS,
            "samples": {
                "fitted": len(parts.taught),
                "judged": len(parts.judged),
                "tested": len(parts.tested),
                "seed": self.request.run.seed,
            },
            "trials": [
                {name: getattr(t, name) for name in ("share", "loss", "ratio", "low", "high", "parameters")} | {"taken": t is best}
                for t in found.trials
            ],
            "layers": best.detail["layers"] if best else [],
            "tuning": best.detail["tuning"] if best else None,
        }


def _following(request: CompressionRequest, run: Request) -> Request:
    """The run of the preset that follows."""
    return replace(run, preset=request.then or "", passes=None, options={}, in_place=False)
