"""Samples for a captured program, made from its example inputs: other values, and other sizes of the dynamic dims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import GraphoptError, InputError
from graphopt.programs.calling import as_array
from graphopt.programs.captured import Captured
from graphopt.programs.facts import Facts, facts_of
from graphopt.verification import Sample, load_samples

if TYPE_CHECKING:
    import onnx_ir as ir

_JITTER = 0.05  # of the spread, on redrawn floats

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def given_samples(captured: Captured, path: Path) -> list[Sample]:
    """The samples in an `.npz` or a folder of them, checked against the inputs. Raises InputError as `load_samples` does."""
    return load_samples(path, interface_of(captured))


def make_samples(captured: Captured, run: Run, *, seed: int = 0, count: int = 4) -> tuple[list[Sample], list[str]]:
    """Samples on which the eager module runs, and remarks on what they do not cover.

    The example inputs come first, then others of their sizes, then every dynamic dim at another size than the
    example's. Floats keep the statistics of the examples, integers their bounds (a table's size where one is looked up
    in), masks stay masks.

    Raises:
        InputError: the module does not run on its own example inputs.
    """
    examples = {name: as_array(t, own=True) for name, t in captured.tensors().items()}
    first = Sample(examples, "the example inputs")
    try:
        run(examples)
    except GraphoptError as error:
        raise InputError(f"{captured.source}: does not run on its example inputs: {error}") from error
    drawer = _Drawer(captured, seed)
    found, warnings = [first], []
    sizes: list[dict[str, int]] = []
    for point in _points(captured):
        if any(point.items() <= known.items() for known in sizes):
            continue  # every dim of it was at that size already
        sample = drawer.sample(point)
        if _runs(run, sample):
            sizes.append(point)
            found.append(sample)
        if len(sizes) > 1 and {d for p in sizes for d in p} == set(captured.ranges):
            break
    moved = {dim for point in sizes for dim in point}
    warnings += [f"dimension {dim} was only that of the example inputs: the module ran at no other size that was tried"
                 for dim in captured.ranges if dim not in moved]  # fmt: skip
    for _ in range(2 * count):
        if len(found) >= count:
            break
        sample = drawer.sample({})
        if not captured.inputs:
            break
        if _runs(run, sample):
            found.insert(1, sample)
    return found, warnings


def _runs(run: Run, sample: Sample) -> bool:
    try:
        answer = run(sample.feeds)
    except GraphoptError:
        return False
    floats = [v for v in answer.values() if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.size]
    return not floats or any(np.isfinite(v).any() for v in floats)


def _points(captured: Captured) -> list[dict[str, int]]:
    """Sizes of dims worth trying: all of them moved at once, one way and the other, then each of them alone."""
    have = {dim: captured.tensors()[name].shape[axis] for name, axes in captured.dims.items() for axis, dim in axes.items()}
    lists: dict[str, list[int]] = {}
    for dim in captured.ranges:
        size = have.get(dim, 2)
        low, high = captured.ranges[dim]
        wanted = [*captured.worked.get(dim, ()), size + 1, 2 * size, size // 2, size + size // 2, size - 1, low, high or 0]
        most = min(8 * size + 8, high or 8 * size + 8)
        lists[dim] = [s for s in dict.fromkeys(wanted) if s != size and max(low, 1) <= s <= most]
    lists = {dim: sizes for dim, sizes in lists.items() if sizes}
    if not lists:
        return []
    together = [{dim: sizes[min(i, len(sizes) - 1)] for dim, sizes in lists.items()} for i in range(3)]
    together.append({dim: min(sizes) for dim, sizes in lists.items()})
    return together + [{dim: size} for dim, sizes in lists.items() for size in sizes]


class _Drawer:
    """Draws values like those of the example inputs; every draw another."""

    def __init__(self, captured: Captured, seed: int) -> None:
        self.captured = captured
        self.examples = captured.tensors()
        self.facts = facts_of(captured.program)
        self.seed = seed
        self.drawn = 0

    def sample(self, sizes: Mapping[str, int]) -> Sample:
        self.drawn += 1
        resized = self.captured.resized(sizes)
        lengths: dict[tuple[int, int], np.ndarray] = {}
        feeds = {}
        for number, (name, tensor) in enumerate(resized.items()):
            rng = np.random.default_rng([self.seed, self.drawn, number])
            fitted = as_array(tensor, own=True)
            feeds[name] = _redrawn(name, fitted, as_array(self.examples[name]), self.facts.get(name, Facts()), rng, lengths)
        at = ", ".join(f"{dim}={size}" for dim, size in sizes.items())
        return Sample(feeds, "synthesized from the example inputs" + (f": {at}" if at else ""))


def _redrawn(name: str, example: np.ndarray, given: np.ndarray, facts: Facts, rng: np.random.Generator, lengths: dict) -> np.ndarray:
    """Values in the shape of `example`; what sort they are of `given`, which was not cut or repeated, tells."""
    if not example.size:
        return example
    if example.dtype.kind in "iub":
        return _integers(name, example, given, facts, rng, lengths).astype(example.dtype)
    if example.dtype.kind == "c":
        drawn = _floats(example.real, rng) + 1j * _floats(example.imag, rng)
        return drawn.astype(example.dtype)
    return _floats(example.astype(np.float64), rng).astype(example.dtype)


def _integers(
    name: str, example: np.ndarray, given: np.ndarray, facts: Facts, rng: np.random.Generator, lengths: dict
) -> np.ndarray:  # fmt: skip
    if _ordered(given):  # positions, of which any other order would be nonsense
        steps = given.flat[0] + np.arange(example.shape[-1])
        most = steps[-1] if facts.high is None else facts.high
        return np.broadcast_to(np.minimum(steps, most), example.shape)
    if facts.high is not None and facts.high >= facts.low:
        # Type ids, of which there are a few, and ids of a vocabulary alike: anything that the table holds.
        return rng.integers(facts.low, facts.high + 1, size=example.shape)
    values = np.unique(example)
    if set(values.tolist()) <= {0, 1} and example.ndim and ("mask" in name or _rowwise(given) or example.dtype == bool):
        return _mask(example, _rowwise(given) or given.ndim < 2, rng, lengths)
    if example.ndim == 0 or values.size == 1:
        return example  # a size, a step: what it may be is not known
    return rng.choice(values, size=example.shape)


def _ordered(example: np.ndarray) -> bool:
    """Whether the last axis counts up by one in every row."""
    return example.ndim > 0 and example.shape[-1] > 1 and example.dtype != bool and bool(np.all(np.diff(example, axis=-1) == 1))


def _rowwise(example: np.ndarray) -> bool:
    """Whether every row begins with its ones: a mask of padding."""
    return example.ndim >= 2 and bool(np.all(np.diff(example.astype(np.int8), axis=-1) <= 0))


def _mask(example: np.ndarray, padding: bool, rng: np.random.Generator, lengths: dict) -> np.ndarray:
    """A mask of padding with other lengths, the same for all inputs of one shape; other masks with their rows in another order."""
    if not padding:
        return rng.permutation(example, axis=0)
    shape = example.shape
    rows, length = (shape[0] if example.ndim > 1 else 1), shape[-1]
    if (rows, length) not in lengths:
        counts = rng.integers(max(1, (length + 1) // 2), length + 1, size=rows)
        counts[0] = length
        lengths[rows, length] = counts
    counts = lengths[rows, length].reshape((rows,) + (1,) * (example.ndim - 1))
    return np.broadcast_to(np.arange(length) < counts, (rows, *shape[1:])).reshape(shape)


def _floats(example: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values of the same distribution: drawn from the example's own, a little moved, within its range."""
    shape = example.shape
    finite = example[np.isfinite(example)]
    if not finite.size:
        return example
    low, high, spread = float(finite.min()), float(finite.max()), float(finite.std())
    if spread == 0.0:  # zeros or ones as a stand-in for anything: a scalar is a limit or a rate and stays
        return example if example.ndim == 0 or example.size == 1 else low + rng.standard_normal(shape)
    if np.array_equal(finite, np.round(finite)):  # pixels, counts, flags
        return rng.choice(finite, size=shape)
    drawn = rng.choice(finite, size=shape) + _JITTER * spread * rng.standard_normal(shape)
    return np.clip(drawn, low, high)


def interface_of(captured: Captured) -> ir.Model:
    """A model of nothing but the inputs, for what is checked against the inputs of one."""
    import onnx_ir as ir

    values = []
    for name, tensor in captured.tensors().items():
        dims = captured.dims.get(name, {})
        shape = ir.Shape([dims.get(axis, size) for axis, size in enumerate(tensor.shape)])
        dtype = ir.DataType.from_numpy(as_array(tensor).dtype)
        values.append(ir.Value(name=name, shape=shape, type=ir.TensorType(dtype)))
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 20}, name=captured.name), ir_version=10)
