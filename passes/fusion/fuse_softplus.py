"""Softplus spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Editor, Effect, Match, Pattern, Refuse, Rewrite, const, guards, op, var

from ..arguments import element_type
from .ranges import Range, read_range
from .reading import beside, claim, equals, goes_to, made_by, operand


@dataclass(frozen=True)
class FuseSoftplus(Rewrite):
    """Write max(x, 0) + log(1 + exp(-|x|)) as Softplus.

    log(1 + exp(x)), without the maximum drawn out, is infinite where x is large; Softplus is not, so it is left alone.
    In no preset: ONNX Runtime 1.32 computes the parts with vector instructions, and Softplus one element at a time, which
    takes three times as long.
    """

    name = "fuse-softplus"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return (op("Log", op("Add", op("Exp", var("power"), bind="exp"), const("one"), commutative=True, bind="plus"), bind="log"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, exp, plus, log = editor.context, match["exp"], match["plus"], match["log"]
        if not equals(beside(context, plus, exp.outputs[0]), 1.0):
            return
        negated = made_by(match["power"], "Neg")
        absolute = made_by(negated.inputs[0], "Abs") if negated is not None else None
        if absolute is None:
            raise Refuse("exp overflows where x is large, and Softplus does not")
        x = absolute.inputs[0]
        last = goes_to(log.outputs[0], "Add")
        positive = made_by(operand(last, log.outputs[0]), "Relu", "Max", "Clip") if last is not None else None
        if positive is None or read_range(context, positive) != (x, Range(0.0, float("inf"))):
            return
        claim(match, [negated, absolute, positive, last], last)
        guards.require(element_type(context, x) == ir.DataType.FLOAT, "it is not known to be of float32")
        editor.replace(last.outputs[0], editor.node("Softplus", [x], name=last.name, like=last.outputs[0]))
