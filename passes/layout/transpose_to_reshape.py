"""Transposes that move no element in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, var

from .permutations import is_identity, moves_ones_only, perm_of
from .targets import reshape_target


@dataclass(frozen=True)
class TransposeToReshape(Rewrite):
    """Turn a Transpose that only moves dimensions of size 1 into a Reshape, which copies nothing."""

    name = "transpose-to-reshape"

    def patterns(self) -> Sequence[Pattern]:
        return (op("Transpose", var("x")),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, context = match.root, editor.context
        perm, dims = perm_of(context, node), context.dims(match["x"])
        if perm is None or dims is None or is_identity(perm) or not moves_ones_only(perm, dims):
            return
        target = reshape_target(context, dims, [dims[a] for a in perm])
        if target is None:
            return
        shape = editor.constant(target, f"{node.name or 'Transpose'}/shape")
        editor.replace(node.outputs[0], editor.node("Reshape", [match["x"], shape], name=node.name, like=node.outputs[0]))
