"""Reductions over no axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, var

from ..arguments import integer, ints


@dataclass(frozen=True)
class EliminateNoopReductions(Rewrite):
    """Remove ReduceSum, ReduceMean, ReduceMax, ReduceMin and ReduceProd over no axis (noop_with_empty_axes)."""

    name = "eliminate-noop-reductions"

    def patterns(self) -> Sequence[Pattern]:
        # The norms and logarithms act on the elements even where they reduce none.
        kinds = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
        return (op(kinds, var("x"), ..., where=lambda node: "axes" not in node.attributes),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node = match.root
        if integer(node, "noop_with_empty_axes", 0) == 1 and ints(editor.context, node, "axes", 1) in (None, ()):
            editor.replace(node.outputs[0], match["x"])
