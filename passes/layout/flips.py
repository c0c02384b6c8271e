"""What an operator becomes when its data come in another layout: rules for operators that work in any.

A rule is asked with the layout that is known of the data inputs, of the outputs, or of both, and answers with a `Flip`:
the layouts of all inputs and outputs, and the arguments that change. None: the operator cannot take part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, constant_array, constant_tensor

from ..arguments import UNKNOWN, integer, ints, normal_axes
from .permutations import Perm, without


@dataclass
class Flip:
    """One operator in another layout.

    Attributes:
        inputs, outputs: the layout of each; None: as it is.
        attributes: those that change; None removes one.
        arguments: inputs that become other constants, by number.
        op_type: the operator that takes its place, where it is another one.
        loses_last: a kernel that works along the last axis only would have to transpose by itself.
    """

    inputs: list[Perm | None]
    outputs: list[Perm | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    arguments: dict[int, list[int] | np.ndarray] = field(default_factory=dict)
    op_type: str | None = None
    loses_last: bool = False


Rule = Callable[[Context, ir.Node, Perm | None, Perm | None], Flip | None]


def data(node: ir.Node, source: Perm | None, target: Perm | None) -> Flip:
    """The first input and the first output in their layouts, all else as it is."""
    return Flip([source, *[None] * (len(node.inputs) - 1)], [target, *[None] * (len(node.outputs) - 1)])


def argument(flip: Flip, node: ir.Node, name: str, index: int, values: list[int]) -> None:
    """Change an integer argument where it stands: as an attribute, or as an input."""
    if name in node.attributes:
        flip.attributes[name] = values
    else:
        flip.arguments[index] = values


def known_axes(context: Context, node: ir.Node, name: str, index: int, rank: int) -> tuple[int, ...] | None:
    """Axes that are given and known, counted from the front."""
    axes = ints(context, node, name, index)
    if axes is None or axes == UNKNOWN:
        return None
    normal = normal_axes(axes, rank)  # type: ignore[arg-type]
    return normal if normal is not None and all(0 <= a < rank for a in normal) and len(set(normal)) == len(normal) else None


def known_axis(node: ir.Node, default: int, rank: int) -> int | None:
    axis = integer(node, "axis", default)
    if axis is None or not -rank <= axis < rank:
        return None
    return axis % rank


# --- element by element -----------------------------------------------------------------------------------------------


def unary(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    """Elements of the first input; what else there is, are scalars."""
    perm = source or target
    others = () if node.op_type == "CastLike" else node.inputs[1:]  # of which only the type counts
    if len(node.outputs) != 1 or any(v is not None and context.dims(v) != () for v in others):
        return None
    return data(node, perm, perm)


def elementwise(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    """Elements of all inputs, broadcast to the rank of the output."""
    perm = source or target
    assert perm is not None
    if context.opset(node) < 7 or context.rank(node.outputs[0]) != len(perm):
        return None
    inputs: list[Perm | None] = []
    for value in node.inputs:
        dims = context.dims(value)
        if dims is None:
            return None
        if all(d == 1 for d in dims):
            inputs.append(None)  # broadcast alike in any layout
        elif len(dims) == len(perm) or constant_tensor(value) is not None:
            inputs.append(perm)
        else:
            return None
    return Flip(inputs, [perm])


def quantize(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    """Scale and zero point: scalars, or vectors along an axis."""
    perm = source or target
    assert perm is not None
    rank = context.rank(node.inputs[1])
    if rank is None or rank > 1 or integer(node, "block_size", 0) != 0:
        return None
    flip = data(node, perm, perm)
    if rank == 1 and context.dims(node.inputs[1]) != (1,):
        axis = known_axis(node, 1, len(perm))
        if axis is None:
            return None
        flip.attributes["axis"] = perm.index(axis)
    return flip


# --- along one axis ---------------------------------------------------------------------------------------------------


def concat(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    perm = source or target
    assert perm is not None
    axis = known_axis(node, 1, len(perm))
    if axis is None or any(v is None or context.rank(v) != len(perm) for v in node.inputs):
        return None
    return Flip([perm] * len(node.inputs), [perm], {"axis": perm.index(axis)})


def along_axis(default: int, last: bool = False) -> Rule:
    """One data input, outputs of its rank, and the attribute `axis`. `last`: kernels want it to be the last one."""

    def rule(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
        perm = source or target
        assert perm is not None
        axis = known_axis(node, default, len(perm))
        if axis is None or (last and context.opset(node) < 13):  # they flattened
            return None
        flip = data(node, perm, perm)
        flip.outputs = [perm] * len(node.outputs)
        flip.attributes["axis"] = perm.index(axis)
        flip.loses_last = last and axis == len(perm) - 1 and perm[-1] != axis
        return flip

    return rule


def gather(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    count = context.rank(node.inputs[1])
    if count is None or (source is None and count != 1):
        return None
    perm = source or target
    assert perm is not None
    axis = known_axis(node, 0, len(perm))
    if axis is None:
        return None
    result: list[int] = []
    for a in perm:
        result.extend(range(axis, axis + count) if a == axis else [a if a < axis else a + count - 1])
    flip = data(node, perm, tuple(result))
    flip.attributes["axis"] = perm.index(axis)
    return flip


def gather_elements(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    perm = source or target
    assert perm is not None
    axis = known_axis(node, 0, len(perm))
    return None if axis is None else Flip([perm, perm], [perm], {"axis": perm.index(axis)})


def cumsum(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    perm = source or target
    assert perm is not None
    axis = constant_array(node.inputs[1], max_bytes=8)
    if axis is None or axis.size != 1 or not -len(perm) <= int(axis.reshape(())) < len(perm):
        return None
    flip = data(node, perm, perm)
    flip.arguments[1] = np.full(axis.shape, perm.index(int(axis.reshape(())) % len(perm)), axis.dtype)
    return flip


def reduction(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    """Reduce*: axes as an attribute or an input, or all."""
    keep = integer(node, "keepdims", 1)
    perm = source or (target if keep else None)
    if perm is None or keep is None:
        return None
    given = ints(context, node, "axes", 1)
    if given is None or given == ():
        if integer(node, "noop_with_empty_axes", 0) != 0:
            return None
        return data(node, perm, perm if keep else None)
    axes = known_axes(context, node, "axes", 1, len(perm))
    if axes is None:
        return None
    flip = data(node, perm, perm if keep else without(perm, axes))
    argument(flip, node, "axes", 1, sorted(perm.index(a) for a in axes))
    return flip


def arg_reduction(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    keep = integer(node, "keepdims", 1)
    perm = source or (target if keep else None)
    if perm is None or keep is None:
        return None
    axis = known_axis(node, 0, len(perm))
    if axis is None:
        return None
    flip = data(node, perm, perm if keep else without(perm, (axis,)))
    flip.attributes["axis"] = perm.index(axis)
    return flip


# --- channels where they are ----------------------------------------------------------------------------------------------


def per_channel(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    """Normalization over channels: axis 1 has to stay."""
    perm = source or target
    assert perm is not None
    if len(perm) < 2 or perm[1] != 1 or (node.op_type != "BatchNormalization" and perm[0] != 0):
        return None
    if integer(node, "training_mode", 0) != 0 or integer(node, "spatial", 1) != 1 or len(node.outputs) != 1:
        return None
    return data(node, perm, perm)


def matmul(context: Context, node: ir.Node, source: Perm | None, target: Perm | None) -> Flip | None:
    """Batches of matrices in another order; the matrices stay as they are."""
    perm = source or target
    assert perm is not None
    rank, other = len(perm), context.rank(node.inputs[1])
    if context.rank(node.inputs[0]) != rank or other is None or rank < 3:
        return None
    if other == 2 and perm[-1] == rank - 1:
        return Flip([perm, None], [perm])
    if other == rank and perm[-2:] == (rank - 2, rank - 1):
        return Flip([perm, perm], [perm])
    return None
