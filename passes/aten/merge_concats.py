"""`merge-concats` on ATen graphs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from graphopt.rewriting import Refuse

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_CAT = "aten.cat.default"


def run(context: AtenContext, max_inputs: int) -> None:
    """Join at once what a concatenation, and one behind it along the same axis, join."""
    from graphopt.aten import drive

    drive(context, (_CAT,), partial(_rewrite, limit=max_inputs))


def _rewrite(outer: Node, editor: AtenEditor, limit: int) -> None:
    context = editor.context
    axis, rank = _axis(outer, context), context.rank(outer)
    parts: list[Any] = []
    found, shared = False, None
    tensors = context.arguments(outer)["tensors"]
    for part in tensors:
        if context.op(part) != _CAT or _axis(part, context) != axis or context.dtype(part) != context.dtype(outer):
            parts.append(part)
            continue
        if context.rank(part) != rank:
            parts.append(part)  # an empty tensor of one axis, which may stand beside any other
        elif len(part.users) > 1:
            shared = part
            parts.append(part)
        else:
            found = True
            parts += context.arguments(part)["tensors"]
    if found and len(parts) > limit:
        raise Refuse(f"it would have more than {limit} inputs")
    if found:
        editor.replace(outer, editor.call(_CAT, [parts, axis]))
    elif shared is not None:
        context.only_user(shared, "the joined value", outer)


def _axis(node: Node, context: AtenContext) -> int:
    rank = context.rank(node) or 1
    return context.arguments(node)["dim"] % rank
