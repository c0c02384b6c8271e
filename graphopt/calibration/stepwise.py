"""Means of inner values that are to be what they were: how far off each one is, once all before it are corrected.

The values are taken in the order of the graph. Each part between them runs once on every sample, from the values before
it with their corrections added, so the whole costs about one run of the model a sample, however many values there are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import runtime
from graphopt.calibration.collect import Shown
from graphopt.calibration.sources import Part, Source
from graphopt.errors import CalibrationError, GraphoptError
from graphopt.formats import Tapped
from graphopt.reporting.progress import Progress


def thinned(source: Source, count: int | None) -> Source:
    """At most `count` samples of a source, evenly spread over it; None: all."""
    if count is None or len(source) <= count:
        return source
    return Part(source, tuple(sorted({int(n) for n in np.linspace(0, len(source) - 1, count).round()})))


def mean_shifts(
    model: ir.Model, wanted: Mapping[str, tuple[int, np.ndarray]], source: Source, *, threads: int = 0, provider: str = "cpu",
    shown: Shown | None = None, folder: Path | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What must be added to each channel of float32 values of the main graph for their means to be the wanted ones.

    The values between which the graph is cut are held for all samples, as long as something after them is to come.

    Args:
        wanted: value -> axis of its channels, and the means, float64. Computed by nodes of the main graph.
        source: samples; gone through once for each layer of values that depend on each other.

    Returns:
        Value -> what to add, float64; NaN where a value is not finite on a sample.

    Raises:
        CalibrationError: a sample does not fit, or there are none.
    """
    before = _nearest(model, wanted)
    held: dict[str, list[np.ndarray]] = {}
    shifts: dict[str, np.ndarray] = {}
    with (
        tempfile.TemporaryDirectory(prefix="graphopt-calibration-", dir=folder) as work,
        (shown or Progress(quiet=True).stage)("comparing means") as stage,
    ):
        tapped = Tapped(model, Path(work))
        while len(shifts) < len(before):
            stage(len(shifts), len(before))
            ready = [name for name in before if name not in shifts and before[name] <= shifts.keys()]
            given = {name: held[name] for name in dict.fromkeys(v for name in ready for v in sorted(before[name]))}
            path = tapped.write(ready, given=list(given))
            session = runtime.session(path, optimize=False, threads=threads, provider=provider)
            path.unlink()
            for name, arrays in _run(session, source, ready, given).items():
                axis, mean = wanted[name]
                shifts[name] = mean - _mean(name, arrays, axis, mean.size)
                held[name] = [_plus(array, axis, shifts[name]) for array in arrays]
            awaited = {v for name, values in before.items() if name not in shifts for v in values}
            held = {name: arrays for name, arrays in held.items() if name in awaited}
    return shifts


def _run(session: object, source: Source, names: list[str], given: Mapping[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for number, sample in enumerate(source):
        try:
            results = runtime.run(session, {**sample.feeds, **{name: arrays[number] for name, arrays in given.items()}})
        except GraphoptError as error:
            raise CalibrationError(f"calibration sample {sample.origin}: {error}") from error
        for name in names:
            found[name].append(np.asarray(results[name]))
    if not found[names[0]]:
        raise CalibrationError(f"{source.description}: there are no calibration samples")
    return found


def _mean(name: str, arrays: Iterable[np.ndarray], axis: int, channels: int) -> np.ndarray:
    total, count = np.zeros(channels), 0
    for array in arrays:
        if array.shape[axis] != channels:
            raise CalibrationError(f"tensor {name!r} has {array.shape[axis]} channels in one sample and {channels} in another")
        others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
        total += array.sum(axis=others, dtype=np.float64)
        count += array.size // channels
    return total / max(count, 1)


def _plus(array: np.ndarray, axis: int, shift: np.ndarray) -> np.ndarray:
    shape = [1] * array.ndim
    shape[axis] = shift.size
    return array + np.nan_to_num(shift).reshape(shape).astype(array.dtype)


def _nearest(model: ir.Model, wanted: Iterable[str]) -> dict[str, set[str]]:
    """Of each wanted value those before it, between which and it there is no other; in the order of the graph."""
    names, found = set(wanted), {}
    reached: dict[ir.Value, set[str]] = {}
    for node in model.graph:
        sources = [reached[value] for value in _reads(node) if value in reached]
        together = set().union(*sources) if len(sources) > 1 else sources[0] if sources else set()
        for value in node.outputs:
            if value.name in names:
                found[value.name] = together
                reached[value] = {value.name}
            elif together:
                reached[value] = together
    if missing := names - found.keys():
        raise CalibrationError(f"tensor {sorted(missing)[0]!r} is computed by no node of the main graph")
    return found


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node consumes, what its subgraphs capture included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) and not attribute.is_ref():
            for graph in [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs():
                yield from (value for value in graph.outputs if value is not None)
                for inner in graph:
                    yield from _reads(inner)
