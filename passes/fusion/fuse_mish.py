"""Mish spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, guards, op, var

from ..arguments import element_type
from .reading import claim, goes_to, needs_opset, operand


@dataclass(frozen=True)
class FuseMish(Rewrite):
    """Write x * tanh(softplus(x)) as Mish (opset 18).

    Misra 2019, "Mish: A Self Regularized Non-Monotonic Activation Function".
    """

    name = "fuse-mish"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return (op("Tanh", op("Softplus", var("x")), bind="tanh"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        tanh, x = match["tanh"], match["x"]
        last = goes_to(tanh.outputs[0], "Mul")
        if last is None or operand(last, tanh.outputs[0]) is not x:
            return
        claim(match, [last], last)
        needs_opset(editor.context, tanh, "Mish", 18)
        guards.require(element_type(editor.context, x) == ir.DataType.FLOAT, "it is not known to be of float32")
        editor.replace(last.outputs[0], editor.node("Mish", [x], name=last.name, like=last.outputs[0]))
