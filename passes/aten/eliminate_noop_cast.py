"""`eliminate-noop-cast` on ATen graphs: conversions to the type, device and layout that the value has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .reading import applied_to

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

CASTS = (
    "aten._to_copy.default", "aten.to.dtype", "aten.to.device", "aten.to.dtype_layout", "aten.to.other", "aten.type_as.default",
    "prims.convert_element_type.default",
)  # fmt: skip


def run(context: AtenContext) -> None:
    """Remove them."""
    from graphopt.aten import drive

    drive(context, CASTS, _rewrite)


def _rewrite(node: Node, editor: AtenEditor) -> None:
    x = applied_to(node, editor.context)
    if editor.context.alike(node, x):
        editor.replace(node, x)
