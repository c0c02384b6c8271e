"""`merge-reshapes` on ATen graphs: views of a view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .reading import applied_to

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_BY_SHAPE = ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
_BY_AXES = ("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.unsqueeze.default")
_OTHERS = ("aten.flatten.using_ints", "aten.unflatten.int")
_OPERATORS = (*_BY_SHAPE, *_BY_AXES, *_OTHERS)


def run(context: AtenContext) -> None:
    """Let one view do what two in a row do, where the first serves nobody else."""
    from graphopt.aten import drive

    drive(context, _OPERATORS, _rewrite)


def _rewrite(outer: Node, editor: AtenEditor) -> None:
    context = editor.context
    inner = applied_to(outer, context)
    if context.op(inner) not in _OPERATORS:
        return
    x = applied_to(inner, context)
    if context.alike(outer, x):
        editor.replace(outer, x)
        return
    kinds = context.op(outer), context.op(inner)
    if len(inner.users) > 1 or all(k in _BY_AXES for k in kinds):
        return  # squeezing in steps is as good as a view, which needs the whole shape
    shape = context.arguments(outer)["size" if "view" in kinds[0] else "shape"] if kinds[0] in _BY_SHAPE else _shape(outer, context)
    if shape is not None:
        operator = "aten.reshape.default" if "aten.reshape.default" in kinds else "aten.view.default"
        editor.replace(outer, editor.call(operator, [x, shape]))


def _shape(node: Node, context: AtenContext) -> list[int] | None:
    """The shape of a value with at most one size left to work out; None: more are not known."""
    dims = context.shape(node)
    if dims is None or 0 in dims or sum(not isinstance(d, int) for d in dims) > 1:
        return None
    return [d if isinstance(d, int) else -1 for d in dims]
