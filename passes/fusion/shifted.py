"""A value less its maximum along an axis, as a numerically safe Softmax starts."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Refuse, guards

from ..arguments import UNKNOWN, integer, ints, normal_axes
from .reading import made_by

TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Shifted:
    """x - max(x), along `axis`, counted from the front."""

    x: ir.Value
    axis: int
    rank: int
    nodes: tuple[ir.Node, ...]


def read_shifted(context: Context, value: ir.Value) -> Shifted:
    """The value that stands before the maximum was taken off; refuses where there is none."""
    minus = made_by(value, "Sub")
    largest = made_by(minus.inputs[1], "ReduceMax") if minus is not None else None
    if largest is None or largest.inputs[0] is not minus.inputs[0]:
        raise Refuse("the maximum is not taken off before exp, which overflows where Softmax does not")
    x = largest.inputs[0]
    rank = context.rank(x)
    guards.require(rank is not None, "the rank is not known")
    axis = reduces_along(context, largest, None, rank)
    if axis is None:
        raise Refuse("the maximum is not that along one axis, with the dimension kept")
    return Shifted(x, axis, rank, (minus, largest))


def reduces_along(context: Context, node: ir.Node, axis: int | None, rank: int) -> int | None:
    """The one axis, counted from the front, that a reduction keeps as 1; None where it is not `axis` or there are several."""
    axes = ints(context, node, "axes", 1)
    if axes is None or axes == UNKNOWN or len(axes) != 1 or integer(node, "keepdims", 1) != 1:
        return None
    found = normal_axes(axes, rank)[0]  # type: ignore[index,arg-type]
    return found if axis in (None, found) else None


def last_axis(found: Shifted) -> int:
    """The attribute `axis` of a Softmax over the last axis, the same in all opsets; refuses another axis.

    ONNX Runtime transposes to and fro for another axis: measured over the channels of [4, 64, 56, 56] on x86-64, its
    Softmax takes four times as long as the parts.
    """
    guards.require(found.axis == found.rank - 1, "it is not over the last axis, and the operator is slower over another")
    return found.axis
