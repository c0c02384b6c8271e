"""`eliminate-identity` on ATen graphs: copies and aliases of a value that lies in memory as they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .reading import applied_to

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

OPERATORS = (
    "aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.lift_fresh.default", "aten.lift_fresh_copy.default",
    "aten.lift.default", "aten.contiguous.default", "aten.positive.default",
)  # fmt: skip


def run(context: AtenContext) -> None:
    """Remove them, but for a copy that keeps an output apart from what others hold, or that lays out memory anew."""
    from graphopt.aten import drive

    drive(context, OPERATORS, _rewrite)


def _rewrite(node: Node, editor: AtenEditor) -> None:
    x = applied_to(node, editor.context)
    if editor.context.alike(node, x):
        editor.replace(node, x)
