"""`fuse-silu`: x sigmoid(x) as the operator silu."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .reading import is_float
from .spelled import MUL, claim, goes_to, other

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor


def run(context: AtenContext) -> None:
    """Write each as silu."""
    from graphopt.aten import drive

    drive(context, ("aten.sigmoid.default",), _rewrite)


def _rewrite(gate: Node, editor: AtenEditor) -> None:
    context = editor.context
    x, last = context.arguments(gate)["self"], goes_to(gate, context, *MUL)
    if last is None or other(last, gate, context) is not x or not is_float(context, x):
        return
    claim([gate], last, context)
    editor.root = last
    editor.replace(last, editor.call("aten.silu.default", [x]))
