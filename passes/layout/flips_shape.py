"""What operators that change or cut shapes become when their data come in another layout; see `flips`."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, constant_array, constant_tensor

from ..arguments import ints
from .flips import Flip, argument, data, known_axes
from .permutations import Perm, with_axes, without
from .targets import reshape_target

_SMALL: Final = 1 << 12  # bytes of an argument


def squeeze(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    given = ints(context, node, "axes", 1)
    if not isinstance(given, tuple):
        return None
    rank = len(source) if source is not None else len(target) + len(given)  # type: ignore[arg-type]
    axes = known_axes(context, node, "axes", 1, rank)
    if axes is None:
        return None
    perm = source if source is not None else with_axes(target, axes)  # type: ignore[arg-type]
    flip = data(node, perm, without(perm, axes))
    argument(flip, node, "axes", 1, sorted(perm.index(a) for a in axes))
    return flip


def unsqueeze(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    given = ints(context, node, "axes", 1)
    if not isinstance(given, tuple):
        return None
    rank = len(target) if target is not None else len(source) + len(given)  # type: ignore[arg-type]
    axes = known_axes(context, node, "axes", 1, rank)
    if axes is None:
        return None
    perm = target if target is not None else with_axes(source, axes)  # type: ignore[arg-type]
    flip = data(node, without(perm, axes), perm)
    argument(flip, node, "axes", 1, sorted(perm.index(a) for a in axes))
    return flip


def expand(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    perm = source or target
    assert perm is not None
    shape = ints(context, node, "shape", 1)
    if not isinstance(shape, tuple) or len(shape) > len(perm) or context.rank(node.inputs[0]) != len(perm):
        return None
    full = (1,) * (len(perm) - len(shape)) + shape
    flip = data(node, perm, perm)
    flip.arguments[1] = [full[a] for a in perm]
    return flip


def tile(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    perm = source or target
    assert perm is not None
    repeats = ints(context, node, "repeats", 1)
    if not isinstance(repeats, tuple) or len(repeats) != len(perm) or context.opset(node) < 6:
        return None
    flip = data(node, perm, perm)
    flip.arguments[1] = [repeats[a] for a in perm]
    return flip


def pad(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    perm = source or target
    assert perm is not None
    flip, rank = data(node, perm, perm), len(perm)
    if context.opset(node) >= 18 and len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = known_axes(context, node, "axes", 3, rank)
        tensor = constant_tensor(node.inputs[3])
        if axes is None or tensor is None:
            return None
        flip.arguments[3] = np.asarray([perm.index(a) for a in axes], tensor.dtype.numpy())
        return flip
    pads = ints(context, node, "pads", 1)
    if not isinstance(pads, tuple) or len(pads) != 2 * rank:
        return None
    argument(flip, node, "pads", 1, [pads[a + side] for side in (0, rank) for a in perm])
    return flip


def slice_(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    perm = source or target
    assert perm is not None
    flip = data(node, perm, perm)
    attributes = context.opset(node) < 10
    given = ints(context, node, "axes", 3)
    if given is None:
        starts = ints(context, node, "starts", 1)
        dims = context.static_dims(node.inputs[1]) if len(node.inputs) > 1 else None
        count = len(starts) if isinstance(starts, tuple) else dims[0] if dims else None
        if count is None or count > len(perm):
            return None
        axes: tuple[int, ...] | None = tuple(range(count))
    else:
        axes = known_axes(context, node, "axes", 3, len(perm))
    if axes is None:
        return None
    moved = [perm.index(a) for a in axes]
    if attributes:
        flip.attributes["axes"] = moved
        return flip
    index = constant_tensor(node.inputs[1])
    flip.arguments[3] = np.asarray(moved, np.int64 if index is None else index.dtype.numpy())
    return flip


def resize(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    """Region of interest, scales and sizes of all axes, constant; or an attribute that says of which."""
    perm = source or target
    assert perm is not None
    version, rank = context.opset(node), len(perm)
    mode = node.attributes.get("mode")
    if version < 11 or (mode is not None and mode.is_ref()):
        return None
    interpolates = mode is not None and mode.as_string() != "nearest"
    flip = data(node, perm, perm)
    flip.arguments = {}
    if "axes" in node.attributes:
        axes = known_axes(context, node, "axes", -1, rank)
        if axes is None:
            return None
        flip.attributes["axes"] = [perm.index(a) for a in axes]
        return None if interpolates and not set(flip.attributes["axes"]) <= {rank - 1, rank - 2} else flip
    dims = context.dims(node.inputs[0])
    for index, value in enumerate(node.inputs):
        if index == 0 or value is None:
            continue
        array = constant_array(value, max_bytes=_SMALL)
        if array is None or array.ndim != 1:
            return None
        if array.size == 0:
            continue
        if array.size != (2 * rank if index == 1 else rank):
            return None
        order = [a + side for side in ((0, rank) if index == 1 else (0,)) for a in perm]
        flip.arguments[index] = array[order]
        if interpolates and index > 1:  # kernels interpolate over the last two axes
            outer = perm[:-2] if rank > 2 else ()
            if any(array[a] != (1 if index == 2 else dims[a] if dims is not None else None) for a in outer):
                return None
    return flip


def reshape(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    """Reshape and Flatten where each dimension, or a run of neighbours, stays what it is or is cut into a run."""
    before, after = context.dims(node.inputs[0]), context.dims(node.outputs[0])
    if before is None or after is None or 0 in before or 0 in after or context.opset(node) < 5:
        return None
    groups = _groups(before, after)
    if groups is None:
        return None
    if source is not None:
        perm, result = source, _carried(source, [g for g, _ in groups], [g for _, g in groups], len(after))
    else:
        assert target is not None
        perm, result = _carried(target, [g for _, g in groups], [g for g, _ in groups], len(before)), target
    if perm is None or result is None:
        return None
    shape = reshape_target(context, [before[a] for a in perm], [after[a] for a in result])
    if shape is None:
        return None
    return Flip([perm, *[None] * (len(node.inputs) - 1)], [result], _NO_ATTRIBUTES[node.op_type], {1: shape}, "Reshape")


_NO_ATTRIBUTES: Final = {"Reshape": {"allowzero": None}, "Flatten": {"axis": None}}


def _groups(before: tuple[int | str, ...], after: tuple[int | str, ...]) -> list[tuple[list[int], list[int]]] | None:
    """Runs of axes before and after that hold the same elements, the ones left out; None where that cannot be told."""
    left = [i for i, d in enumerate(before) if d != 1]
    right = [i for i, d in enumerate(after) if d != 1]
    groups = []
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        if before[a[0]] != after[b[0]]:
            size_a, size_b = before[a[0]], after[b[0]]
            while size_a != size_b:
                if not isinstance(size_a, int) or not isinstance(size_b, int):
                    return None
                side, run, dims = (left, a, before) if size_a < size_b else (right, b, after)
                if not side or not isinstance(dims[side[0]], int):
                    return None
                run.append(side.pop(0))
                if size_a < size_b:
                    size_a *= dims[run[-1]]  # type: ignore[assignment, operator]
                else:
                    size_b *= dims[run[-1]]  # type: ignore[assignment, operator]
        groups.append((a, b))
    return None if left or right else groups


def _carried(perm: Perm, mine: list[list[int]], other: list[list[int]], rank: int) -> Perm | None:
    """The layout on the other side of a Reshape; None where `perm` tears a run apart."""
    order = []
    position = {axis: i for i, axis in enumerate(a for a in perm if any(a in run for run in mine))}
    for run, partner in zip(mine, other):
        places = [position[a] for a in run]
        if places != list(range(places[0], places[0] + len(run))):
            return None
        order.append((places[0], partner))
    moved = iter([a for _, partner in sorted(order) for a in partner])
    real = {a for partner in other for a in partner}
    return tuple(next(moved) if a in real else a for a in range(rank))
