"""`eliminate-noop-selections` on ATen graphs: operators that select, pad, join or split, and here take everything there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .reading import applied_to

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_SLICES = ("aten.slice.Tensor", "aten.narrow.default")  # ascending, so as many elements as there are are all of them, in order
_PADS = ("aten.constant_pad_nd.default", "aten.pad.default")
_JOINS = ("aten.cat.default", "aten.concat.default")
_SPLITS = ("aten.split.Tensor", "aten.split_with_sizes.default", "aten.unsafe_split.Tensor", "aten.unsafe_split_with_sizes.default",
           "aten.chunk.default")  # fmt: skip
_MOVES = ("aten.roll.default",)


def run(context: AtenContext) -> None:
    """Remove them."""
    from graphopt.aten import drive

    drive(context, (*_SLICES, *_PADS, *_JOINS, *_SPLITS, *_MOVES), _rewrite)


def _rewrite(node: Node, editor: AtenEditor) -> None:
    context = editor.context
    operator, x = context.op(node), applied_to(node, editor.context)
    if operator in _SPLITS:
        parts = node.meta.get("val")
        if isinstance(parts, list | tuple) and len(parts) == 1:
            for part in node.users:
                if context.op(part) == "getitem" and context.alike(part, x):
                    editor.replace(part, x)
        return
    if operator in _JOINS:
        if len(x) != 1:
            return
        (x,) = x
    elif operator in _PADS:
        if any(not isinstance(p, int) or p for p in context.arguments(node)["pad"]):
            return
    elif operator in _MOVES and any(not isinstance(n, int) or n for n in list(context.arguments(node).values())[1]):
        return
    if context.alike(node, x):
        editor.replace(node, x)
