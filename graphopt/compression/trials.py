"""One share tried: cut, layers behind it fitted, what is left tuned; then judged and timed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.compression.journal import Journal
from graphopt.compression.judging import Judge
from graphopt.compression.request import CompressionRequest
from graphopt.compression.search import MOST, Trial
from graphopt.errors import InputError

if TYPE_CHECKING:
    from graphopt.calibration import Source
    from graphopt.measurement import Speed
    from graphopt.model import Model
    from graphopt.pipeline.presets import Pipeline
    from graphopt.pipeline.runner import Candidate
    from graphopt.workbench import Stages

SHARE = "ratio"  # the option of passes that is searched


@dataclass(frozen=True)
class Parts:
    """The samples: to learn from, to decide by, and to judge by in the end. No sample is in two of them."""

    taught: Source
    judged: Source
    tested: Source


class Trials:
    """Makes trials, each once.

    Attributes:
        fault: why what is left cannot be tuned; None: it can.
    """

    def __init__(
        self, request: CompressionRequest, pipeline: Pipeline, base: Path, parts: Parts, judge: Judge, journal: Journal, stages: Stages
    ) -> None:  # fmt: skip
        """base: the model after lossless passes."""
        self.request, self.pipeline, self.base, self.parts = request, pipeline, base, parts
        self.judge, self.journal, self.stages = judge, journal, stages
        self.fault = None if request.tune is not False else "it was not asked for"
        if request.tune is None and importlib.util.find_spec("torch") is None:
            self.fault = "torch is not installed (pip install 'graphopt[torch]')"
        self._shapes: dict[tuple[Any, ...], Trial] = {}

    def at_once(self, share: float) -> Trial:
        """A share cut out of the original."""
        return self.attempt(share, None)

    def attempt(self, share: float, start: Trial | None) -> Trial:
        """A share of the original's channels cut, out of the model of another trial; None: out of the original."""
        known = self.journal.find(share, start)
        if known is not None:
            return known
        self.stages.tell(f"trying to cut {share:.0%}")
        begun = self.base if start is None else start.path
        candidate = self.cut(share, start)
        graph = candidate.model.graph
        shapes = (begun, tuple((n, tuple(v.shape or ())) for n, v in graph.graph.initializers.items()))
        if shapes in self._shapes:  # widths go in steps, so that shares close together may cut the same
            return replace(self._shapes[shapes], share=share)
        detail: dict[str, Any] = {"layers": [], "tuning": None, "cut": len(candidate.applications)}
        if self.request.recover and candidate.applications:
            detail["layers"] = [vars(layer) for layer in self._reconstructed(begun, candidate.model)]
        if candidate.applications and self.fault is None:
            detail["tuning"] = self._tuned(candidate.model)
        trial = self._measured(share, candidate.model, detail)
        self.journal.keep(share, start, trial)
        self._shapes[shapes] = trial
        return trial

    def cut(self, share: float, start: Trial | None) -> Candidate:
        """The passes that cut, over the model that it begins with."""
        from graphopt.formats import load_model
        from graphopt.pipeline.runner import run_pipeline

        begun, done = (self.base, 0.0) if start is None else (start.path, start.share)
        ratio = 1 - (1 - share) / (1 - done)  # of the channels that are still there
        pipeline = self.pipeline.mapped(lambda step: _with_share(step, ratio))
        gradients = any(getattr(step, "importance", None) == "taylor" for step in pipeline.steps)
        return run_pipeline(lambda: self._with_gradients(begun) if gradients else load_model(begun), pipeline)

    def _with_gradients(self, path: Path) -> Model:
        """A model with what the outputs feel of each of its weights."""
        from graphopt.extras import require_torch
        from graphopt.formats import load_model

        require_torch("gradients")
        from graphopt.recovery.tuning.batches import Batches
        from graphopt.recovery.tuning.salience import put_salience

        model = load_model(path)
        put_salience(model.graph, Batches(self.parts.taught, model.graph, self.request.tuning.batch), seed=self.request.run.seed)
        return model

    def _reconstructed(self, begun: Path, model: Model) -> list[Any]:
        from graphopt.formats import load_model
        from graphopt.recovery import kept_in, reconstruct

        run = self.request.run
        self.stages.tell("fitting layers behind the cut")
        return reconstruct(
            load_model(begun).graph, model.graph, self.parts.taught, kept_in(model.graph), seed=run.seed, threads=run.threads
        )

    def _tuned(self, model: Model) -> dict[str, Any] | None:
        """Tunes the weights; what became of it, or None where that cannot be done."""
        from graphopt.formats import load_model
        from graphopt.recovery.tuning import tune

        run = self.request.run
        try:
            with self.stages.within("tuning") as stage:
                done = tune(
                    model.graph, load_model(self.base).graph, self.parts.taught, self.parts.judged,
                    replace(self.request.tuning, seed=run.seed), threads=run.threads,
                    checkpoint=self.journal.folder / "tuning.pt", stage=stage,
                )  # fmt: skip
        except InputError as error:  # an operator that torch has not, or that has no gradient
            if self.request.tune:
                raise
            self.fault = str(error)
            return None
        return asdict(done)

    def _measured(self, share: float, model: Model, detail: dict[str, Any]) -> Trial:
        from graphopt.formats import save_model

        path = self.journal.place()
        save_model(model, path)
        self.stages.tell(f"judging and timing the cut of {share:.0%}")
        speed = self.speed(path)
        quality = self.judge.quality(path)
        parameters = sum(v.const_value.size for v in model.graph.graph.initializers.values() if v.const_value is not None)
        detail |= {"quality": quality if isinstance(quality, float) else None, "speed": speed.to_dict()}
        return Trial(share, self.judge.loss(quality), speed.ratio, speed.low, speed.high, parameters, path, detail)

    def speed(self, path: Path) -> Speed:
        """How fast a model is beside the original, on the largest of the samples that decide."""
        from graphopt.measurement import compare

        run = self.request.run
        return compare(run.model, path, self._largest(), threads=run.threads, provider=run.provider, max_seconds=self.request.seconds)

    def _largest(self) -> Mapping[str, np.ndarray]:
        """The judged sample with the most elements: speed at a size at which the model is used."""
        return max(self.parts.judged, key=lambda s: sum(np.size(a) for a in s.feeds.values())).feeds


def _with_share(step: Any, share: float) -> Any:
    if not any(o.name == SHARE for o in step.options()):
        return step
    values: dict[str, Any] = {o.name: getattr(step, o.name.replace("-", "_")) for o in step.options()}
    return step.configure(values | {SHARE: min(share, MOST)})
