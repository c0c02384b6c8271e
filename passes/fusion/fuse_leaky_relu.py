"""LeakyRelu spelled out with Where, Max, Min or Relu."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Rewrite, guards, op, var

from ..arguments import element_type
from .reading import beside, claim, equals, made_by, needs_opset, number

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_ABOVE, _BELOW = ("Greater", "GreaterOrEqual"), ("Less", "LessOrEqual")


@dataclass(frozen=True)
class FuseLeakyRelu(Rewrite):
    """Write max(x, a x), x > 0 ? x : a x, and relu(x) - a relu(-x) as LeakyRelu.

    Maas, Hannun and Ng 2013, "Rectifier Nonlinearities Improve Neural Network Acoustic Models".
    """

    name = "fuse-leaky-relu"
    effect = Effect.ROUNDING  # the sign of a zero, and a slope of -a

    def patterns(self) -> Sequence[Pattern]:
        sign = op((*_ABOVE, *_BELOW), var("compared"), var("zero"), bind="sign")
        return (
            op("Where", sign, var("a"), var("b"), bind="where"),
            op("Max", op(("Mul", "Div"), bind="scaled"), var("x"), commutative=True, bind="max"),
            op("Sub", op("Relu", var("x"), bind="relu"), op(("Mul", "Relu"), bind="negative"), bind="sum"),
            op("Add", op("Relu", var("x"), bind="relu"), op("Mul", bind="negative"), commutative=True, bind="sum"),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, last = editor.context, match.root
        if "where" in match:
            found = _of_where(context, match)
        elif "max" in match:
            slope = _slope(context, match["scaled"], match["x"])
            found = (match["x"], slope, [match["scaled"]]) if slope is not None and 0 <= slope <= 1 else None
        else:
            found = _of_relu(context, match)
        if found is None or not np.isfinite(found[1]):
            return
        x, slope, nodes = found
        claim(match, nodes, last)
        needs_opset(context, last, "LeakyRelu", 6)
        guards.require(element_type(context, x) in _TYPES, "it is not known to be of a floating-point type")
        guards.require(float(np.float32(slope)) == slope, "the slope is not a float32")
        output = last.outputs[0]
        editor.replace(output, editor.node("LeakyRelu", [x], {"alpha": slope}, name=last.name, like=output))


def _slope(context: Context, scaled: ir.Node | None, x: ir.Value) -> float | None:
    """The constant that a node multiplies x by."""
    if scaled is None or scaled.op_type != "Mul":
        return None
    return number(beside(context, scaled, x))


def _of_where(context: Context, match: Match) -> tuple[ir.Value, float, list[ir.Node]] | None:
    """x, slope and nodes of a choice by the sign of x."""
    x = match["compared"]
    if not equals(beside(context, match["sign"], x), 0.0):
        return None
    positive, negative = (match["a"], match["b"]) if match["sign"].op_type in _ABOVE else (match["b"], match["a"])
    scaled = made_by(negative, "Mul")
    slope = _slope(context, scaled, x)
    return (x, slope, [match["sign"], scaled]) if positive is x and slope is not None else None


def _of_relu(context: Context, match: Match) -> tuple[ir.Value, float, list[ir.Node]] | None:
    """x, slope and nodes of relu(x) - a relu(-x)."""
    x, scaled = match["x"], match["negative"]
    sign = 1.0 if match.root.op_type == "Sub" else -1.0
    if scaled.op_type == "Relu":
        part, slope, nodes = scaled, 1.0, []
    else:
        part = next((p for v in scaled.inputs if (p := made_by(v, "Relu")) is not None), None)
        slope = _slope(context, scaled, part.outputs[0]) if part is not None else None
        nodes = [scaled]
    negated = made_by(part.inputs[0], "Neg") if part is not None else None
    if slope is None or negated is None or negated.inputs[0] is not x:
        return None
    return x, sign * slope, [match["relu"], *nodes, part, negated]
