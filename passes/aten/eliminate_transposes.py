"""`eliminate-transposes` on ATen graphs: permutations in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .permutations import PERMUTATIONS, permutation, permuted
from .reading import applied_to

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor


def run(context: AtenContext) -> None:
    """Cancel and merge them."""
    from graphopt.aten import drive

    drive(context, PERMUTATIONS, _rewrite)


def _rewrite(outer: Node, editor: AtenEditor) -> None:
    context = editor.context
    inner = applied_to(outer, context)
    if context.op(inner) not in PERMUTATIONS:
        return
    first, second = permutation(inner, context), permutation(outer, context)
    if first is not None and second is not None and len(first) == len(second):
        editor.replace(outer, permuted(editor, applied_to(inner, context), tuple(first[a] for a in second)))
