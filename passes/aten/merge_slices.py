"""`merge-slices` on ATen graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.rewriting import Refuse

from ..layout.slices import Cut, joined

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_SLICE = "aten.slice.Tensor"
_FAR = 2**63 - 1


def run(context: AtenContext) -> None:
    """Take at once what two slices in a row take of one axis."""
    from graphopt.aten import drive

    drive(context, (_SLICE,), _rewrite)


def _rewrite(outer: Node, editor: AtenEditor) -> None:
    context = editor.context
    inner = context.arguments(outer)["self"]
    if context.op(inner) != _SLICE:
        return
    (axis, first), (other, second) = _cut(inner, context), _cut(outer, context)
    if first is None or second is None or axis != other or len(inner.users) > 1:
        return
    x = context.arguments(inner)["self"]
    size = context.shape(x)[axis]
    joint = joined(first, second, size if isinstance(size, int) else None)
    if joint is None:
        raise Refuse(f"what both take of axis {axis} hangs on its size, which is not known")
    start, end, step = joint
    editor.replace(outer, editor.call(_SLICE, [x, axis, start, end, step]))


def _cut(node: Node, context: AtenContext) -> tuple[int, Cut | None]:
    """The axis of a slice and what it takes; None where that is not known before it runs."""
    given = context.arguments(node)
    axis = given["dim"] % (context.rank(node) or 1)
    start, end, step = given["start"], given["end"], given["step"]
    start, end = 0 if start is None else start, _FAR if end is None else end
    return axis, (start, end, step) if all(isinstance(v, int) for v in (start, end, step)) else None
