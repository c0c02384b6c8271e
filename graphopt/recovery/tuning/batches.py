"""Samples as mini-batches, in an order that the seed and the epoch alone decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.errors import CalibrationError
from graphopt.verification import Sample

Feeds = Mapping[str, np.ndarray]


class Batches:
    """Samples in memory.

    Where all inputs have one batch dimension in common (the same symbol on axis 0) and the samples differ in nothing
    else, their rows are put together and batches drawn from them; else each sample is a batch.

    Attributes:
        rows: how many rows, or samples, there are.
        steps: batches in an epoch.
    """

    def __init__(self, samples: Iterable[Sample], model: ir.Model, size: int) -> None:
        """Raises CalibrationError where there are none, or an input is a sequence."""
        every = [sample.feeds for sample in samples]
        if not every:
            raise CalibrationError("there are no samples to tune on")
        if any(isinstance(a, list) for feeds in every for a in feeds.values()):
            raise CalibrationError("inputs that are sequences cannot be tuned on")
        self._joined: dict[str, np.ndarray] | None = None
        if _share_batches(model, every):
            self._joined = {name: np.concatenate([feeds[name] for feeds in every]) for name in every[0]}
            self.rows = len(next(iter(self._joined.values())))
            self._size = size
        else:
            self._every = every
            self.rows, self._size = len(every), 1
        self.steps = -(-self.rows // self._size)

    def epoch(self, seed: int | None, number: int = 0) -> Iterator[Feeds]:
        """The batches of an epoch: every row once, in an order of its own; seed None: in the order of the samples."""
        order = np.arange(self.rows) if seed is None else np.random.default_rng([seed, number]).permutation(self.rows)
        for start in range(0, self.rows, self._size):
            chosen = order[start : start + self._size]
            if self._joined is None:
                yield self._every[int(chosen[0])]
            else:
                yield {name: array[chosen] for name, array in self._joined.items()}


def _share_batches(model: ir.Model, every: list[Feeds]) -> bool:
    first = every[0]
    for value in model.graph.inputs:
        if value.name not in first:
            continue
        if value.shape is None or not len(value.shape) or not isinstance(value.shape[0], ir.SymbolicDim):
            return False
    symbols = {str(v.shape[0].value) for v in model.graph.inputs if v.name in first and v.shape is not None}  # type: ignore[union-attr]
    if len(symbols) != 1:
        return False
    outputs = [v for v in model.graph.outputs if v.shape is not None and len(v.shape)]
    if len(outputs) < len(model.graph.outputs) or any(str(getattr(v.shape[0], "value", "")) not in symbols for v in outputs):  # type: ignore[index]
        return False  # rows of what the model gives are not rows of what it takes
    return all(
        feeds.keys() == first.keys()
        and all(np.shape(a)[1:] == np.shape(first[n])[1:] for n, a in feeds.items())
        and len({len(a) for a in feeds.values()}) == 1
        for feeds in every
    )
