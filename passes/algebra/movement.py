"""What an affine function becomes on the other side of an operator that moves, copies, averages or picks elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Dim, Refuse, guards, scalar_of

from ..arguments import UNKNOWN, ints

_LIMIT = 1 << 20  # elements of a constant that is spread over several axes

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
POSITIVE = ("Relu", "LeakyRelu", "PRelu")
COPIES = ("Slice", "Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth")
"""Operators that copy elements of their first input: one factor for all elements passes them."""
POOLS = ("MaxPool", "GlobalMaxPool", "AveragePool", "GlobalAveragePool", "Resize")
ONE_TO_ONE = frozenset(("Identity", "Transpose", "Pad", *RESHAPES, *POSITIVE, *COPIES, *POOLS))


@dataclass(frozen=True)
class Affine:
    """x * mul + shift; both arrays have the rank of x, one element on the axes that they do not depend on, or rank 0."""

    mul: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, mul: np.ndarray, shift: np.ndarray) -> Affine:
        """The same, with rank 0 where one factor and one shift serve all elements."""
        mul, shift = np.broadcast_arrays(np.asarray(mul, np.float64), np.asarray(shift, np.float64))
        if mul.size and (mul == mul.flat[0]).all() and (shift == shift.flat[0]).all():
            return cls(mul.flat[0].reshape(()), shift.flat[0].reshape(()))
        return cls(mul, shift)

    @property
    def scalar(self) -> bool:
        return self.mul.ndim == 0

    @property
    def shifts(self) -> bool:
        return bool(self.shift.any())

    def map(self, function) -> Affine:
        """Both arrays through `function`."""
        return Affine.of(function(self.mul), function(self.shift))

    def per_channel(self, rank: int | None, axis: int, channels: int, what: str) -> tuple[np.ndarray, np.ndarray]:
        """`mul` and `shift`, one value a channel of the given axis."""
        if self.scalar:
            return np.full(channels, float(self.mul)), np.full(channels, float(self.shift))
        if rank is None or self.mul.ndim != rank:
            raise Refuse(f"the rank of {what} is not known")
        axis %= rank
        if any(d != (channels if i == axis else 1) for i, d in enumerate(self.mul.shape)):
            raise Refuse(f"the constant is not one value a channel of {what}")
        return self.mul.reshape(-1), self.shift.reshape(-1)


def passed(node: ir.Node, affine: Affine, *, back: bool, context: Context) -> Affine:
    """The affine function of the input that `node` turns into `affine` of its output (`back`), or the other way round.

    `node` is of a type in `ONE_TO_ONE`. Refuses where there is none.
    """
    kind = node.op_type
    if kind in POSITIVE:
        guards.require(not affine.shifts and bool((affine.mul > 0).all()), f"only a positive scale passes a {kind}")
        return affine
    if kind in POOLS:
        _guard_pool(node, affine, back, context)
        return affine
    if kind == "Pad":
        _guard_pad(node, affine, context)
        return affine
    if affine.scalar or kind == "Identity":
        return affine
    if kind in COPIES:
        raise Refuse(f"more than one value does not pass a {kind}")
    if kind == "Transpose":
        perm = guards.attribute(node, "perm") or tuple(range(affine.mul.ndim))[::-1]
        guards.require(len(perm) == affine.mul.ndim, "the Transpose does not fit the rank")
        order = np.argsort(perm) if back else perm
        return affine.map(lambda a: a.transpose(order))
    x, y = context.dims(node.inputs[0]), context.dims(node.outputs[0])
    source, target = (y, x) if back else (x, y)
    if source is None or target is None or len(source) != affine.mul.ndim:
        raise Refuse(f"the shapes around the {kind} are not known")
    return affine.map(lambda a: regrouped(a, source, target))


def regrouped(array: np.ndarray, source: Sequence[Dim], target: Sequence[Dim]) -> np.ndarray:
    """An array that broadcasts to a value of shape `source`, as one that broadcasts to the value reshaped to `target`."""
    full, result = list(array.shape), [1] * len(target)
    for (start, stop), (begin, end), known in _groups(source, target):
        if all(d == 1 for d in array.shape[start:stop]):
            continue
        if not known:
            raise Refuse("how a Reshape deals with the axis of the constant is not known")
        full[start:stop] = source[start:stop]  # type: ignore[assignment]
        result[begin:end] = target[begin:end]  # type: ignore[assignment]
    if math.prod(full) > _LIMIT:
        raise Refuse("the constant would become large on the other side of a Reshape")
    return np.broadcast_to(array, full).reshape(result)


def _groups(source: Sequence[Dim], target: Sequence[Dim]) -> list[tuple[tuple[int, int], tuple[int, int], bool]]:
    """Runs of axes of two shapes of one value that hold the same elements, from the right and then from the left."""
    found = []
    i, j = len(source), len(target)
    while (step := _group([*source[:i]][::-1], [*target[:j]][::-1])) is not None:
        found.append(((i - step[0], i), (j - step[1], j), True))
        i, j = i - step[0], j - step[1]
    a = b = 0
    while (step := _group(source[a:i], target[b:j])) is not None:
        found.append(((a, a + step[0]), (b, b + step[1]), True))
        a, b = a + step[0], b + step[1]
    found.append(((a, i), (b, j), False))
    return found


def _group(source: Sequence[Dim], target: Sequence[Dim]) -> tuple[int, int] | None:
    """How many leading axes of each make up the first group; None where that is not known."""
    if not source or not target:
        return None
    if source[0] == target[0]:
        return 1, 1
    counts, products = [0, 0], [1, 1]
    shapes = source, target
    while not all(counts) or products[0] != products[1]:
        side = 0 if not counts[0] or (counts[1] and products[0] < products[1]) else 1
        if counts[side] == len(shapes[side]) or not isinstance(dim := shapes[side][counts[side]], int) or dim == 0:
            return None
        products[side] *= dim
        counts[side] += 1
    return counts[0], counts[1]


def part(affine: Affine, axis: int, start: int, size: int) -> Affine:
    """What applies to `size` elements of `axis` from `start` on."""
    if affine.scalar or affine.mul.shape[axis] == 1:
        return affine
    return affine.map(lambda a: np.take(a, np.arange(start, start + size), axis))


def spread(affine: Affine, rank: int, axis: int, sizes: Sequence[int], index: int) -> Affine:
    """What applies to values side by side along `axis`, of the given sizes, of which one gets `affine` and the others nothing."""
    shape = list(affine.mul.shape) if affine.mul.ndim else [1] * rank
    if len(shape) != rank:
        raise Refuse("the rank of what is joined is not known")
    shape[axis] = sizes[index]
    parts = []
    for array, neutral in ((affine.mul, 1.0), (affine.shift, 0.0)):
        other = [np.full([*shape[:axis], size, *shape[axis + 1 :]], neutral) for size in sizes]
        other[index] = np.broadcast_to(array, shape)
        parts.append(np.concatenate(other, axis))
    return Affine.of(*parts)


def _guard_pool(node: ir.Node, affine: Affine, back: bool, context: Context) -> None:
    kind = node.op_type
    guards.require(affine.scalar or all(d == 1 for d in affine.mul.shape[2:]), f"the constant differs within a window of the {kind}")
    if "Max" in kind:
        guards.require(bool((affine.mul > 0).all()), f"only a positive scale passes a {kind}")
        guards.unused_outputs(node)
    elif kind == "AveragePool" and affine.shifts:
        auto_pad = guards.attribute(node, "auto_pad", "NOTSET")
        padded = auto_pad.startswith("SAME") or any(guards.attribute(node, "pads", ()))
        counted = guards.attribute(node, "count_include_pad", 0)
        guards.require(not (padded and counted) and not guards.attribute(node, "ceil_mode", 0), "the AveragePool counts what it pads")
    elif kind == "Resize":
        guards.require(guards.attribute(node, "mode", "nearest") in ("nearest", "linear"), "the Resize is not linear in what it resizes")
        mode = guards.attribute(node, "coordinate_transformation_mode", "half_pixel")
        guards.require(mode != "tf_crop_and_resize", "the Resize fills in a value of its own")
        x, y = context.dims(node.inputs[0]), context.dims(node.outputs[0])
        kept = affine.scalar or (x is not None and y is not None and x[:2] == y[:2])
        guards.require(kept, "the Resize may change the number of channels")


def _guard_pad(node: ir.Node, affine: Affine, context: Context) -> None:
    mode = guards.attribute(node, "mode", "constant")
    if mode == "constant":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        number = guards.attribute(node, "value", 0.0) if value is None else scalar_of(value)
        guards.require(number == 0 and not affine.shifts, "the Pad puts in a value that the constant does not reach")
    if affine.scalar:
        return
    amounts = ints(context, node, "pads", 1)
    guards.require(amounts not in (None, UNKNOWN), "how much is padded is not known")
    guards.require(len(node.inputs) < 4 or node.inputs[3] is None, "the Pad names its axes")
    rank = affine.mul.ndim
    guards.require(len(amounts) == 2 * rank, "the Pad does not fit the rank")  # type: ignore[arg-type]
    grown = [amounts[i] != 0 or amounts[i + rank] != 0 for i in range(rank)]  # type: ignore[index]
    guards.require(not any(g and d != 1 for g, d in zip(grown, affine.mul.shape)), "the Pad adds to the axis of the constant")
