"""Operators that undo or repeat what was done just before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, var
from graphopt.rewriting.guards import require

from ..arguments import keeps_shape

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_REPEATED = ("Relu", "Abs", "Ceil", "Floor", "Round", "Sign")  # f(f(x)) = f(x), whatever they make of NaN and -0.0
_UNDONE = ("Neg", "Not", "BitwiseNot")  # f(f(x)) = x


@dataclass(frozen=True)
class EliminateIdempotent(Rewrite):
    """Remove what repeats or undoes the operator before it: Relu(Relu(x)), Not(Not(x)), Max(x, x), Abs(Neg(x)), Where(c, x, x)."""

    name = "eliminate-idempotent"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_idempotent

        eliminate_idempotent.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (
            *(op(kind, op(kind, var("x"), bind="inner")) for kind in _REPEATED),
            *(op(kind, op(kind, var("x")), bind="undo") for kind in _UNDONE),
            op("Abs", op("Neg", var("x")), bind="abs"),
            op(("Max", "Min", "And", "Or", "BitwiseAnd", "BitwiseOr"), var("x"), var("x"), bind="twice"),
            op("Where", var("condition"), var("x"), var("x")),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, x = match.root, match["x"]
        if "inner" in match:
            editor.replace(node.outputs[0], match["inner"].outputs[0])
        elif "abs" in match:
            editor.replace(node.outputs[0], editor.node("Abs", [x]))
        else:
            if "condition" in match:
                dims = editor.context.dims
                require(keeps_shape(dims(x), dims(match["condition"])), "the condition may change the shape of the result")
            editor.replace(node.outputs[0], x)
