"""Casts to the type that the value has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, var

from ..arguments import element_type, integer

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class EliminateNoopCast(Rewrite):
    """Remove Cast and CastLike to the type that the value already has."""

    name = "eliminate-noop-cast"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_noop_cast

        eliminate_noop_cast.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Cast", var("x")), op("CastLike", var("x"), var("like")))

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, x, context = match.root, match["x"], editor.context
        dtype = element_type(context, x)
        if dtype is None:
            return
        if "like" in match:
            same = dtype == element_type(context, match["like"])
        else:
            same = dtype == integer(node, "to", 0)
        if same:
            editor.replace(node.outputs[0], x)
