"""How much of its quality a smaller model lost: by the user's metric, or by its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from graphopt import runtime
from graphopt.errors import InputError
from graphopt.metric import load_metric, measure_metric
from graphopt.request import Request
from graphopt.verification import Sample

OUTPUTS = "root mean square error of the outputs, relative to their spread"


class Judge:
    """Judges models beside the original on samples, or by the metric, of one part ("validation" or "test")."""

    def __init__(self, request: Request, samples: Iterable[Sample], part: str) -> None:
        self.request, self.samples, self.part = request, samples, part
        self.before = self.quality(request.model)

    def quality(self, path: Path) -> float | list[np.ndarray]:
        """The user's metric; without one the float outputs on the samples, as float64.

        Raises InputError where there is neither.
        """
        run = self.request
        if run.metric is not None:
            return measure_metric(load_metric(run.metric), path, threads=run.threads, provider=run.provider, part=self.part)
        session = runtime.session(path, threads=run.threads, provider=run.provider)
        found: list[np.ndarray] = []
        for sample in self.samples:
            found += [np.asarray(a, np.float64) for a in runtime.run(session, sample.feeds).values() if np.asarray(a).dtype.kind == "f"]
        if not found:
            raise InputError(f"{run.model}: it has no float output to judge by: give a --metric")
        return found

    def loss(self, quality: float | list[np.ndarray]) -> float:
        """Relative: of the metric, or the error of the outputs beside their spread (root mean square, the worst output)."""
        before = self.before
        if isinstance(before, float):
            assert isinstance(quality, float)
            return (before - quality) / abs(before) if before else before - quality
        worst = 0.0
        for a, b in zip(before, quality, strict=True):  # type: ignore[arg-type]
            if a.shape != b.shape or not np.isfinite(b).all():
                return math.inf
            spread = float(np.sqrt(np.mean((a - a.mean()) ** 2))) or float(np.sqrt(np.mean(a**2))) or 1.0
            worst = max(worst, float(np.sqrt(np.mean((a - b) ** 2))) / spread)
        return worst
