"""`eliminate-noop-shape-ops` on ATen graphs: views of the shape and the strides that the value has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .permutations import PERMUTATIONS
from .reading import applied_to

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

# All take every element, in order or by their strides: what comes out with the same shape and strides is the same.
_OPERATORS = (
    "aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten.view_as.default", "aten.reshape_as.default",
    "aten.flatten.using_ints", "aten.unflatten.int", "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims",
    "aten.expand.default", "aten.expand_as.default", "aten.repeat.default", "aten.tile.default", *PERMUTATIONS,
)  # fmt: skip


def run(context: AtenContext) -> None:
    """Remove them."""
    from graphopt.aten import drive

    drive(context, _OPERATORS, _rewrite)


def _rewrite(node: Node, editor: AtenEditor) -> None:
    x = applied_to(node, editor.context)
    if editor.context.alike(node, x):
        editor.replace(node, x)
