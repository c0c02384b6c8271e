"""x + 0.0: the same function, but for the sign of a zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, const, op, var
from graphopt.rewriting.guards import FLOATS, require

from ..arguments import keeps_shape
from .eliminate_noop_arithmetic import is_scalar_of

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class EliminateZeroAdditions(Rewrite):
    """Remove x + 0.0 and x - -0.0, which only turn -0.0 into 0.0."""

    name = "eliminate-zero-additions"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_noop_arithmetic

        eliminate_noop_arithmetic.run_zeros(context)

    def patterns(self) -> Sequence[Pattern]:
        return (
            op("Add", var("x"), const("c"), commutative=True),
            op("Sub", var("x"), const("c")),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        x, c = match["x"], match["c"]
        context = editor.context
        if context.opset(match.root) < 7 or context.dtype(c) not in FLOATS or is_scalar_of(c, 0.0) is None:
            return
        dims = context.dims(c)
        require(dims == () or keeps_shape(context.dims(x), dims), "the constant's shape may change the shape of the result")
        editor.replace(match.root.outputs[0], x)
