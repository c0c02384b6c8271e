"""Statistics of the inner values of a model: it is run on every sample, and what its values take is observed.

The values are given out as outputs of a copy of the graph that runs with the runtime's optimizations off, so that all
of them exist. As many as fit into `limit` bytes are taken in one pass over the samples; several passes are made where
they do not, each over the part of the graph that its values need.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import runtime
from graphopt.calibration.observers import METHODS, PLAIN, Observer, Statistics
from graphopt.calibration.sources import Source
from graphopt.errors import CalibrationError, GraphoptError
from graphopt.formats import Tapped
from graphopt.reporting.progress import Progress, Stage

#: Bytes of activations that are held at a time, about. One tensor that is larger alone is read all the same.
LIMIT = 32 << 20

#: Begins a stage of progress, such as `Progress.stage`.
Shown = Callable[[str], AbstractContextManager[Stage]]

_READ = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


def calibrate(
    model: ir.Model,
    tensors: Iterable[str],
    source: Source,
    *,
    method: str | None = None,
    channels: Mapping[str, int] | None = None,
    moments: Iterable[str] = (),
    limit: int = LIMIT,
    threads: int = 0,
    provider: str = "cpu",
    shown: Shown | None = None,
    folder: Path | None = None,
) -> dict[str, Statistics]:
    """Statistics of tensors of the main graph over all samples of a source, by name, in the order asked for.

    Args:
        model: the graph; read, not changed.
        tensors: names of float values that are computed or fed.
        method: the one of `METHODS` that ranges are wanted of; None: all of them. Without histograms it is quicker.
        channels: tensor -> axis, for extremes by channel; these tensors are calibrated too.
        moments: tensors whose E[x x^T] along the last axis is wanted; features squared * 8 bytes each.
        limit: bytes of activations to hold at a time.
        shown: begins a stage of progress by its name.
        folder: where the weights are written for the runtime to map; None: the system's temporary folder.

    Raises:
        CalibrationError: a tensor is not there or not float, a sample does not fit, or there are no samples.
    """
    if method is not None and method not in METHODS:
        raise ValueError(f"method {method!r} is none of {', '.join(METHODS)}")
    channels, moments = dict(channels or {}), frozenset(moments)
    names = list(dict.fromkeys([*tensors, *channels, *sorted(moments)]))
    values = find(model, names)
    observers = {
        name: Observer(name, histogram=method not in PLAIN, axis=channels.get(name), moment=name in moments) for name in names
    }
    fed = [name for name, value in values.items() if value.is_graph_input()]
    inner = [name for name, value in values.items() if not value.is_graph_input()]
    if names:
        with tempfile.TemporaryDirectory(prefix="graphopt-calibration-", dir=folder) as work:
            job = Job(source, observers, limit, threads, provider, shown or Progress(quiet=True).stage)
            job.carry_out(model, fed, inner, Path(work))
    return {name: observer.statistics for name, observer in observers.items()}


def find(model: ir.Model, names: list[str]) -> dict[str, ir.Value]:
    """The values of those names, in the order of the graph."""
    wanted = set(names)
    found = {v.name: v for v in model.graph.inputs if v.name in wanted}
    for node in model.graph:
        for value in node.outputs:
            if value.name in wanted:
                found[value.name] = value
    for name in names:
        value = found.get(name)
        if value is None:
            raise CalibrationError(f"tensor {name!r} is no input of the main graph and computed by none of its nodes")
        if value.dtype is not None and value.dtype not in _READ:
            raise CalibrationError(f"tensor {name!r} is {value.dtype.name}: only float, float16 and double can be calibrated")
    return found  # type: ignore[return-value]


class Job:
    """One walk over the samples, or several: `observers` are given what their tensors are."""

    def __init__(self, source: Source, observers: Mapping[str, Observer], limit: int, threads: int, provider: str, shown: Shown):
        self.source, self.observers, self.limit = source, observers, limit
        self.threads, self.provider, self.shown = threads, provider, shown

    def carry_out(self, model: ir.Model, fed: list[str], inner: list[str], folder: Path) -> None:
        with self.shown("calibrating") as stage:
            self.stage = stage
            if not inner:
                self._pass(fed, None, 0)
                return
            tapped = Tapped(model, folder)
            queue = [(group, 0) for group in self._groups(inner, self._sizes(tapped, inner))]
            stage(0, len(queue) * len(self.source))
            while queue:
                names, start = queue.pop(0)
                path = tapped.write(names)
                try:
                    reached = self._pass(fed, path, start, names)
                finally:
                    path.unlink()
                fed = []  # seen now
                if reached is not None:  # a sample was much larger than the first: the rest is read in two halves
                    half = len(names) // 2
                    queue[:0] = [(names[:half], reached), (names[half:], reached)]
                    stage(stage.done, (stage.total or 0) + len(self.source) - reached)

    def _sizes(self, tapped: Tapped, names: list[str]) -> dict[str, int]:
        """How many elements each tensor has in the first sample, from a run that holds none of them."""
        first = next(iter(self.source), None)
        if first is None:
            raise CalibrationError(f"{self.source.description}: there are no calibration samples")
        path = tapped.write(names, sizes=True)
        found = self._run(runtime.session(path, optimize=False, threads=self.threads, provider=self.provider), first)
        path.unlink()
        return {name: int(size) for name, size in zip(names, found.values(), strict=True)}

    def _groups(self, names: list[str], sizes: Mapping[str, int]) -> list[list[str]]:
        """The tensors in groups of about the limit, in the order of the graph."""
        groups: list[list[str]] = []
        held = math.inf
        for name in names:
            size = 4 * sizes[name]
            if held + size > self.limit:
                groups.append([])
                held = 0
            groups[-1].append(name)
            held += size
        return groups

    def _pass(self, fed: list[str], path: Path | None, start: int, names: list[str] | None = None) -> int | None:
        """Observe one group over the samples from number `start` on.

        Returns the number of the sample before which it was given up, because the tensors take twice the limit and could
        be split; None where it came to the end.
        """
        session = None
        if path is not None:
            session = runtime.session(path, optimize=False, threads=self.threads, provider=self.provider)
        for number, sample in enumerate(itertools.islice(iter(self.source), start, None), start + 1):
            for name in fed:
                self._observe(name, sample.feeds.get(name), sample.origin)
            if session is not None:
                found = self._run(session, sample)
                held = sum(getattr(a, "nbytes", 0) for a in found.values())
                for name in list(found):
                    self._observe(name, found.pop(name), sample.origin)
                if held > 2 * self.limit and names is not None and len(names) > 1 and number < len(self.source):
                    self.stage.advance()
                    # The inputs are not observed again by what follows: they are seen to their end here.
                    self._finish(fed, number)
                    return number
            self.stage.advance()
        return None

    def _finish(self, fed: list[str], start: int) -> None:
        for sample in itertools.islice(iter(self.source), start, None) if fed else ():
            for name in fed:
                self._observe(name, sample.feeds.get(name), sample.origin)

    def _run(self, session: Any, sample: Any) -> dict[str, Any]:
        try:
            # An input that the part of the graph does not need is still one of its inputs.
            return runtime.run(session, sample.feeds)
        except GraphoptError as error:
            raise CalibrationError(f"calibration sample {sample.origin}: {error}") from error

    def _observe(self, name: str, array: Any, origin: str) -> None:
        if array is None:
            return  # an input with a default that the sample does not give
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise CalibrationError(f"tensor {name!r} is no float tensor, so there is nothing to calibrate")
        self.observers[name].add(array, origin)
