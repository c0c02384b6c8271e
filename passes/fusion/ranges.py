"""Clip, Relu, Min and Max with a constant, seen alike: min(max(x, low), high)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Refuse, guards

from ..arguments import element_type
from .reading import beside, number

KINDS = ("Clip", "Relu", "Min", "Max")
_TYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Range:
    """min(max(x, low), high), which is `high` everywhere where that lies below `low`."""

    low: float
    high: float

    def then(self, outer: Range) -> Range:
        """The range that a value is in after this one and then `outer`.

        min(max(min(max(x, l), h), L), H) = min(max(x, max(l, L)), min(max(h, L), H)): max distributes over min, in any
        order of the four bounds. NaN passes through each of them.
        """
        high = min(max(self.high, outer.low), outer.high)
        return Range(min(max(self.low, outer.low), high), high)


def read_range(context: Context, node: ir.Node) -> tuple[ir.Value, Range] | None:
    """What a node confines, and to which range; None where a bound is not a constant or is NaN."""
    if node.op_type in ("Min", "Max"):
        if len(node.inputs) != 2 or None in node.inputs:
            return None
        for x in node.inputs:
            bound = number(beside(context, node, x))
            if bound is not None and not np.isnan(bound):
                return x, Range(-np.inf, bound) if node.op_type == "Min" else Range(bound, np.inf)
        return None
    x = node.inputs[0]
    if x is None:
        return None
    if node.op_type == "Relu":
        return x, Range(0.0, np.inf)
    least, most = limits(context, x)
    bounds = []
    for i, (name, limit) in enumerate((("min", least), ("max", most))):
        attribute = node.attributes.get(name)
        if attribute is not None:
            bounds.append(guards.attribute(node, name))
        elif len(node.inputs) > i + 1 and node.inputs[i + 1] is not None:
            bounds.append(number(node.inputs[i + 1]))
        else:
            bounds.append(limit)
    if any(b is None or np.isnan(b) for b in bounds):
        return None
    return x, Range(*bounds)


def limits(context: Context, x: ir.Value) -> tuple[float, float]:
    """The finite numbers that a Clip without bounds keeps to."""
    dtype = element_type(context, x)
    guards.require(dtype in _TYPES, "it is not known to be of float32, float64 or float16")
    most = float(np.finfo(dtype.numpy()).max)  # type: ignore[union-attr]
    return -most, most


def state_range(editor: Editor, x: ir.Value, found: Range, node: ir.Node) -> ir.Value:
    """A Relu or a Clip that confines `x` to a range, in the place of `node`."""
    context = editor.context
    output = node.outputs[0]
    if found == Range(0.0, np.inf):
        return editor.node("Relu", [x], name=node.name, like=output)
    least, most = limits(context, x)
    if not (least <= found.high <= most and least <= found.low <= most):
        raise Refuse("a Clip also stops infinity, on the side where there is no bound")
    opset, dtype = context.opset(node), element_type(context, x)
    if opset < 11:
        guards.require(opset >= 6 and dtype == ir.DataType.FLOAT, "a Clip of this type needs opset 12")
        return editor.node("Clip", [x], {"min": found.low, "max": found.high}, name=node.name, like=output)
    guards.require(opset >= 12 or dtype == ir.DataType.FLOAT, "a Clip of this type needs opset 12")
    kind = dtype.numpy()  # type: ignore[union-attr]
    bounds = [None if bound == limit else editor.constant(np.asarray(bound, kind), f"{node.name or 'Clip'}/{what}")
              for bound, limit, what in ((found.low, least, "min"), (found.high, most, "max"))]
    while bounds and bounds[-1] is None:
        bounds.pop()
    return editor.node("Clip", [x, *bounds], name=node.name, like=output)
