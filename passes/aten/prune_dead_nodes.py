"""`prune-dead-nodes` on ATen graphs: operators, parameters and buffers that nothing uses, and checks that cannot fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext

_ASSERTION = "aten._assert_tensor_metadata.default"


def run(context: AtenContext) -> None:
    """Remove them. Operators with effects stay: other assertions, random numbers, which move the generator."""
    from graphopt.aten import remove_unused

    for node in context.of([_ASSERTION]):
        if _holds(node, context) and context.log.permit(node):
            remove_unused(context, [node], in_spite=[node])
    gone: dict[Node, None] = {}
    for node in reversed(list(context.graph.nodes)):
        if node in gone or node.users or node.op in ("placeholder", "output") or node.is_impure():
            continue
        if context.log.permit(node):
            gone.update(remove_unused(context, [node]))
    unused = [n for n in context.program.specs if not n.users and context.is_constant(n)]
    tied = context.program.tied() if unused else {}
    for node in unused:
        if context.log.permit(node):
            context.removed(node)
            context.program.drop_constant(node, equal=tied.get(node))


def _holds(node: Node, context: AtenContext) -> bool:
    """Whether the types of the graph prove a check of type, device and layout.

    On an input it tells a caller who gives another type, and stays.
    """
    given = context.arguments(node)
    x = given["a"]
    if context.is_input(x) or given["size"] is not None or given["stride"] is not None:
        return False
    known = {"dtype": f"torch.{context.dtype(x)}", "device": context.device(x), "layout": "torch.strided"}
    return context.dtype(x) is not None and all(given[k] is None or str(given[k]) == known[k] for k in known)
