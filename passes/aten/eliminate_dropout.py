"""`eliminate-dropout` on ATen graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.rewriting import Refuse

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_NATIVE = "aten.native_dropout.default"  # gives a mask too
_OPERATORS = (
    _NATIVE, "aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default", "aten.feature_alpha_dropout.default",
)  # fmt: skip


def run(context: AtenContext) -> None:
    """Remove every one that is not in training mode."""
    from graphopt.aten import drive

    drive(context, _OPERATORS, _rewrite)


def _rewrite(node: Node, editor: AtenEditor) -> None:
    context = editor.context
    x, _, train = context.arguments(node).values()
    if train is not False:
        raise Refuse("it is in training mode")
    if context.op(node) != _NATIVE:
        editor.replace(node, x)
        return
    results = [u for u in node.users if context.op(u) == "getitem" and u.args[1] == 0]
    if len(results) != len(node.users):
        raise Refuse("its mask is used")
    for result in results:
        editor.replace(result, x)
