"""`eliminate-common-subexpressions` on ATen graphs: value numbering, in the order in which operators run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor


def run(context: AtenContext) -> None:
    """Let every user of an operator take the result of an equal one before it."""
    from graphopt.aten.driver import apply
    from graphopt.aten.evaluation import is_function

    table: dict[Any, Node] = {}

    def merge(node: Node, editor: AtenEditor) -> None:
        editor.replace(node, earlier)

    for node in list(context.graph.nodes):
        if node.op != "call_function" or not node.users or not is_function(node):
            continue
        key = (node.target, _key(node.args), _key(tuple(sorted(node.kwargs.items()))))
        earlier = table.setdefault(key, node)
        if earlier is node:
            continue
        if isinstance(node.meta.get("val"), list | tuple):
            _merge_results(node, earlier, context)
        else:
            apply(context, node, merge)


def _merge_results(node: Node, earlier: Node, context: AtenContext) -> None:
    """Of an operator with several results, the readings of one result are merged; then the operator has no users."""
    from graphopt.aten.driver import apply

    if any(context.op(u) != "getitem" for u in (*node.users, *earlier.users)):
        return
    for read in list(node.users):
        def move(read: Node, editor: AtenEditor) -> None:
            same = next((u for u in earlier.users if u.args[1] == read.args[1]), None)
            if same is None or not _stands_before(same, read):
                same = editor.call("getitem", [earlier, read.args[1]], like=read)
            editor.replace(read, same)

        apply(context, read, move)


def _stands_before(a: Node, b: Node) -> bool:
    return a < b


def _key(value: Any) -> Any:
    """A hashable form of arguments that tells 0.0 from -0.0, 1 from 1.0, and True from 1."""
    if isinstance(value, list | tuple):
        return tuple(_key(v) for v in value)
    if isinstance(value, bool | int | float | complex):
        return type(value), repr(value)
    if isinstance(value, dict):
        return tuple((k, _key(v)) for k, v in sorted(value.items()))
    return value
