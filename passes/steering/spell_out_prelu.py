"""PRelu, for which the runtime has a slow kernel, in operators that it computes with vector instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Editor, Effect, Match, Pattern, Refuse, Rewrite, guards, op, var

from ..arguments import element_type


@dataclass(frozen=True)
class SpellOutPrelu(Rewrite):
    """Write PRelu as LeakyRelu or max(x, a x), which are faster on CPUs.

    max(x, a x) holds where no slope is above 1 (or 0: it would make a NaN of infinity). ONNX Runtime 1.32 computes PRelu one
    element at a time, in a time that depends on the values: a branch that is guessed right costs little. Measured on x86-64
    with AVX-512, one thread, P-Net of MTCNN: 1.00 to 1.06 times as fast on pictures, 1.1 to 1.15 on noise. Other slopes, as
    relu(x) + a min(x, 0), were 1.2 to 1.7 times as fast on noise, but 0.95 to 1.00 on pictures.
    """

    name = "spell-out-prelu"
    effect = Effect.ROUNDING  # the sign of a zero
    providers = frozenset({"cpu"})
    measured = True

    def patterns(self) -> Sequence[Pattern]:
        return (op("PRelu", var("x"), var("slope"), bind="prelu"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, node, x, slope = editor.context, match["prelu"], match["x"], match["slope"]
        guards.require(element_type(context, x) == ir.DataType.FLOAT, "it is not known to be of float32")
        slopes = guards.finite(guards.float_constant(slope, "the slope"), "the slope")
        guards.require(context.opset(node) >= 8, "Max and Min do not broadcast before opset 8")
        output = node.outputs[0]
        name = node.name or "PRelu"
        if slopes.size and (slopes == slopes.flat[0]).all() and _adds_no_axis(editor, slope, x):
            new = editor.node("LeakyRelu", [x], {"alpha": float(slopes.flat[0])}, name=name, like=output)
        elif ((slopes <= 1) & (slopes != 0)).all():
            scaled = editor.node("Mul", [x, slope], name=f"{name}/scaled", like=output)
            new = editor.node("Max", [x, scaled], name=name, like=output)
        else:
            raise Refuse("a slope is above 1 or 0, and what computes that takes more operators than it gains")
        editor.replace(output, new)


def _adds_no_axis(editor: Editor, slope: ir.Value, x: ir.Value) -> bool:
    dims = editor.context.dims
    return dims(slope) == () or (dims(x) is not None and len(dims(slope) or ()) <= len(dims(x) or ()))
