"""One compression: lossless passes first, then shares tried out (cut, reconstruct, judge, time), and the best one written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt import runtime
from graphopt.compression.search import MOST, Found, Trial, search
from graphopt.errors import InputError, OptionError
from graphopt.findings import Findings
from graphopt.request import Request, check, plan
from graphopt.run import Result, optimize
from graphopt.workbench import Stages, work_folder

if TYPE_CHECKING:
    from graphopt.pipeline.presets import Pipeline
    from graphopt.pipeline.runner import Candidate
    from graphopt.reporting.progress import Progress

_SHARE = "ratio"  # the option of passes that is searched
_FEWEST = 8  # samples below which a warning is due


@dataclass(frozen=True)
class CompressionRequest:
    """What a compression is asked for.

    Attributes:
        run: model, output, metric, budget, options of passes, threads, provider, seed, plugins; its preset names the
            passes that cut, each with an option `ratio`.
        data: samples without labels to reconstruct on, as for calibration.
        target: speed beside the original that is enough; None: as fast as the budget allows.
        recover: whether layers behind a cut are reconstructed.
        trials: shares that are tried at the most.
        seconds: longest time to measure the speed of one trial.
    """

    run: Request
    data: str
    target: float | None = None
    recover: bool = True
    trials: int = 8
    seconds: float = 3.0
    lossless: str = "default"

    @property
    def budget(self) -> float:
        """The loss that is accepted: 1 % where nothing was said."""
        return 0.01 if self.run.budget is None else self.run.budget


def compress(request: CompressionRequest, *, progress: Progress | None = None) -> Result:
    """Carry a compression out; the input is left alone unless the request says `in_place`.

    The exit code is 1 where no share was within the budget, and the model is then written with lossless passes alone, or
    where the speed that was wanted was not reached.

    Raises:
        GraphoptError: the request or the input is at fault; nothing was written.
    """
    from graphopt.reporting.progress import Progress

    if request.target is not None and not (math.isfinite(request.target) and request.target > 1):
        raise OptionError(f"the target speed-up must be above 1, not {request.target}")
    if not request.budget >= 0:
        raise OptionError(f"budget must be 0 or more, not {request.budget}")
    _, pipeline = plan(request.run)
    if not any(_SHARE in {o.name for o in step.options()} for step in pipeline.steps):
        raise OptionError(f"no pass of the pipeline ({pipeline.name}) cuts: none has an option {_SHARE!r}")
    check(request.run)
    return _Compression(request, pipeline, Stages(progress or Progress(quiet=True)), progress).carry_out()


class _Compression:
    def __init__(self, request: CompressionRequest, pipeline: Pipeline, stages: Stages, progress: Progress | None) -> None:
        self.request, self.pipeline, self.stages, self.progress = request, pipeline, stages, progress
        self.found = Findings()
        self.candidates: dict[Path, Candidate] = {}
        self.tried: dict[tuple[Any, ...], Trial] = {}

    def carry_out(self) -> Result:
        from graphopt.calibration import open_source, split
        from graphopt.formats import load_model, save_model
        from graphopt.reporting.describe import describe, describe_interface

        request, run, stage = self.request, self.request.run, self.stages.stage
        with stage("load", f"loading {run.model.name}"):
            loaded = load_model(run.model)
            interface, before = describe_interface(loaded.graph, run.model), describe(loaded.graph, run.model)
            source = open_source(request.data, loaded.graph)
            self.taught, self.judged = split(source, run.seed)
            if not len(self.judged):
                raise InputError(f"{source.description}: {len(source)} samples; at least two are needed, one of them to judge on")
            if len(source) < _FEWEST:
                self.found.warnings.append(f"{len(source)} samples are few: what is fitted to them may fit nothing else")
        with work_folder(before["bytes"], run.destination.parent) as self.work:
            with stage("passes", "lossless passes"):
                self.base = self._base()
            self.quality_before = self._quality(self.base.path)
            with stage("bench", "trying shares"):
                found = search(self._attempt, request.budget, target=request.target, trials=request.trials)
            best = found.best
            chosen = self.base.path if best is None else best.path
            with stage("verify", "verifying"):
                self.found.verification = self._verification(chosen)
            result = load_model(chosen)
            with stage("save", f"saving {run.destination.name}"):
                save_model(result, run.destination, in_place=run.in_place)
        self._tell(found)
        candidate = self.base.candidate if best is None else self.candidates[best.path]
        after = describe(load_model(run.destination).graph, run.destination)
        told = replace(run, budget=request.budget)
        report = self.found.report(told, self.pipeline.name, candidate, interface, before, after, self.stages.seconds)
        report.extra["compression"] = self._story(found)
        return Result(report, self.found.exit_code(told), candidate)

    # --- one share ----------------------------------------------------------------------------------------------

    def _base(self) -> _Base:
        """The model after lossless passes, verified: cuts start from there, where normalizations are weights."""
        run, path = self.request.run, self.work / "base.onnx"
        plain = replace(
            run, output=path, preset=self.request.lossless, passes=None, options={}, skip=(), bench=False, budget=None, metric=None,
            in_place=False,
        )  # fmt: skip
        result = optimize(plain, progress=self.progress)
        self.found.warnings += result.report.warnings
        return _Base(path, result.candidate)

    def _attempt(self, share: float) -> Trial:
        from graphopt.formats import load_model, save_model
        from graphopt.measurement import compare
        from graphopt.pipeline.runner import run_pipeline
        from graphopt.recovery import kept_in, reconstruct

        self.stages.tell(f"trying to cut {share:.0%}")
        pipeline = self.pipeline.mapped(lambda step: _with_share(step, share))
        candidate = run_pipeline(lambda: load_model(self.base.path), pipeline)
        shapes = tuple((n, tuple(v.shape or ())) for n, v in candidate.model.graph.graph.initializers.items())
        known = self.tried.get(shapes)
        if known is not None:  # widths go in steps, so that shares close together may cut the same
            return replace(known, share=share)
        layers: list[Any] = []
        if self.request.recover and candidate.applications:
            graph = candidate.model.graph
            layers = reconstruct(
                load_model(self.base.path).graph, graph, self.taught, kept_in(graph), seed=self.request.run.seed,
                threads=self.request.run.threads,
            )  # fmt: skip
        path = self.work / f"share{len(self.candidates)}" / self.request.run.destination.name
        path.parent.mkdir()
        save_model(candidate.model, path)
        self.candidates[path] = candidate
        run = self.request.run
        speed = compare(run.model, path, self._largest(), threads=run.threads, provider=run.provider, max_seconds=self.request.seconds)
        quality = self._quality(path)
        loss = self._loss(quality)
        parameters = sum(v.const_value.size for v in candidate.model.graph.graph.initializers.values() if v.const_value is not None)
        detail = {"quality": quality, "speed": speed.to_dict(), "layers": layers}
        trial = Trial(share, loss, speed.ratio, speed.low, speed.high, parameters, path, detail)
        self.tried[shapes] = trial
        return trial

    def _largest(self) -> Mapping[str, np.ndarray]:
        """The judged sample with the most elements: speed at a size at which the model is used."""
        return max(self.judged, key=lambda s: sum(np.size(a) for a in s.feeds.values())).feeds

    # --- quality ------------------------------------------------------------------------------------------------

    def _quality(self, path: Path) -> float | list[np.ndarray]:
        """The user's metric; without one the outputs on the samples that nothing was fitted to."""
        from graphopt.metric import load_metric, measure_metric

        run = self.request.run
        if run.metric is not None:
            return measure_metric(load_metric(run.metric), path, threads=run.threads, provider=run.provider)
        session = runtime.session(path, threads=run.threads, provider=run.provider)
        found: list[np.ndarray] = []
        for sample in self.judged:
            found += [np.asarray(a, np.float64) for a in runtime.run(session, sample.feeds).values() if np.asarray(a).dtype.kind == "f"]
        if not found:
            raise InputError(f"{run.model}: it has no float output to judge by: give a --metric")
        return found

    def _loss(self, quality: Any) -> float:
        """Relative: of the metric, or the error of the outputs beside their spread (root mean square, the worst output)."""
        before = self.quality_before
        if isinstance(before, float):
            return (before - quality) / abs(before) if before else before - quality
        worst = 0.0
        for a, b in zip(before, quality, strict=True):
            if a.shape != b.shape or not np.isfinite(b).all():
                return math.inf
            spread = float(np.sqrt(np.mean((a - a.mean()) ** 2))) or float(np.sqrt(np.mean(a**2))) or 1.0
            worst = max(worst, float(np.sqrt(np.mean((a - b) ** 2))) / spread)
        return worst

    # --- what is told -------------------------------------------------------------------------------------------

    def _verification(self, path: Path) -> dict[str, Any]:
        """That names, types and shapes are kept and nothing is NaN, and how far the outputs moved."""
        from graphopt.verification import verify

        run = self.request.run
        effect = "rounding" if path == self.base.path else "lossy"
        samples = [s for _, s in zip(range(4), self.judged)]
        return verify(run.model, path, samples, effect=effect, budget=math.inf, threads=run.threads, provider=run.provider).to_dict()

    def _tell(self, found: Found) -> None:
        request, best = self.request, found.best
        if best is None:
            self.found.unreached = True
            least = min(found.trials, key=lambda t: t.loss)
            what = f"even {least.share:.0%} loses {least.loss:.2%}, beyond the budget of {request.budget:.2%}"
            self.found.warnings.append(f"nothing was cut: {what}")
            return
        if not any(self.candidates[t.path].applications for t in found.trials):
            self.found.unreached = True
            self.found.warnings.append("nothing could be cut: see what the passes refused")
        elif request.target is not None and best.ratio < request.target:
            self.found.unreached = True
            self.found.warnings.append(f"the target of {request.target:g}x was not reached within the budget: {best.ratio:.2f}x")
        self.found.speed = best.detail["speed"]
        metric = request.run.metric
        if metric is not None:
            before, after = self.quality_before, best.detail["quality"]
            self.found.quality = {"metric": metric, "before": before, "after": after, "loss": best.loss, "budget": request.budget}

    def _story(self, found: Found) -> dict[str, Any]:
        return {
            "share": None if found.best is None else found.best.share,
            "budget": self.request.budget,
            "target": self.request.target,
            "judged_by": self.request.run.metric or "root mean square error of the outputs, relative to their spread",
            "samples": {"fitted": len(self.taught), "judged": len(self.judged), "seed": self.request.run.seed},
            "trials": [
                {"share": t.share, "loss": t.loss, "ratio": t.ratio, "low": t.low, "high": t.high, "parameters": t.parameters}
                for t in found.trials
            ],
            "layers": [vars(layer) for layer in (found.best.detail["layers"] if found.best else [])],
        }


@dataclass(frozen=True)
class _Base:
    path: Path
    candidate: Candidate


def _with_share(step: Any, share: float) -> Any:
    if not any(o.name == _SHARE for o in step.options()):
        return step
    values: dict[str, Any] = {o.name: getattr(step, o.name.replace("-", "_")) for o in step.options()}
    return step.configure(values | {_SHARE: min(share, MOST)})
