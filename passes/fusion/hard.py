"""HardSigmoid spelled out: a value shifted, clipped to [0, 6] and divided by 6, or scaled, shifted and clipped to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, guards

from ..arguments import element_type
from .ranges import read_range
from .reading import beside, equals, made_by, number, operand

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_SIXTHS = tuple(float(np.float32(v)) for v in (1 / 6, 0.1666667))  # as exporters write it


@dataclass(frozen=True)
class Line:
    """slope * x + offset, and the nodes that compute it."""

    x: ir.Value
    slope: float
    offset: float
    nodes: tuple[ir.Node, ...]


def read_line(context: Context, value: ir.Value) -> Line | None:
    """A value as a linear function of another, by one constant added and at most one constant factor before it."""
    add = made_by(value, "Add")
    for inner in add.inputs if add is not None else ():
        offset = number(beside(context, add, inner)) if inner is not None else None
        if offset is None:
            continue
        scale = made_by(inner, "Mul", "Div")
        for x in scale.inputs if scale is not None else ():
            factor = number(beside(context, scale, x)) if x is not None else None
            if factor and (scale.op_type == "Mul" or x is scale.inputs[0]):
                return Line(x, factor if scale.op_type == "Mul" else 1 / factor, offset, (scale, add))
        return Line(inner, 1.0, offset, (add,))
    return None


def read_clipped(context: Context, clip: ir.Node) -> tuple[Line, float] | None:
    """A linear function that is clipped to [0, top], and the top."""
    source = clip.inputs[0]
    line = read_line(context, source) if source is not None else None
    if line is None:
        return None
    found = read_range(context, clip)
    if found is None or found[1].low != 0 or not 0 < found[1].high < np.inf:
        return None
    return line, found[1].high


def divides_by(context: Context, node: ir.Node | None, value: ir.Value, top: float) -> bool:
    """Whether a node computes value / top."""
    if node is None or beside(context, node, value) is None:
        return False
    other = operand(node, value)
    if node.op_type == "Mul":
        return equals(other, 1 / top)
    return node.op_type == "Div" and node.inputs[0] is value and number(other) == top


def is_relu6_line(line: Line, top: float) -> bool:
    """Whether a clipped line is relu6(x + 3)."""
    return top == 6 and line.slope == 1 and line.offset == 3


def is_sixth(node: ir.Node) -> bool:
    """Whether a HardSigmoid is that of HardSwish: x / 6 + 1 / 2."""
    alpha, beta = guards.attribute(node, "alpha", 0.2), guards.attribute(node, "beta", 0.5)
    return float(np.float32(alpha)) in _SIXTHS and beta == 0.5


def supported(context: Context, x: ir.Value) -> None:
    """Refuse types that runtimes have no HardSigmoid for."""
    guards.require(element_type(context, x) in _TYPES, "it is not known to be of float32 or float16")
