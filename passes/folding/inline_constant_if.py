"""If with a condition that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Pass, constant_tensor

from .graft import as_constant, graft


@dataclass(frozen=True)
class InlineConstantIf(Pass):
    """Put the branch that is taken in the place of an If whose condition is constant, or settled by shapes alone."""

    name = "inline-constant-if"

    def run(self, context: Context) -> None:
        # An If inside a branch that goes away is gone when its turn comes; one inside a branch that moves stays findable.
        for node in context.index.of_types(("If",)):
            if node.graph not in context.index.scopes or node.domain not in ("", "ai.onnx"):
                continue  # the first: it went with the branch that it stood in
            holds = taken(context, node)
            if holds is None or not context.log.permit(node):
                continue
            inline(context, node, node.attributes["then_branch" if holds else "else_branch"].as_graph())


def taken(context: Context, node: ir.Node) -> bool | None:
    """Whether the condition holds; None: not known."""
    condition = node.inputs[0]
    tensor = constant_tensor(condition)
    if tensor is not None:
        return bool(tensor.numpy().reshape(-1)[0]) if tensor.size == 1 else None
    known = context.shapes.partial_value(condition)
    return bool(known[0]) if known is not None and len(known) == 1 and isinstance(known[0], int) else None


def inline(
    context: Context, node: ir.Node, branch: ir.Graph, outputs: Sequence[ir.Value] | None = None, after: Sequence[ir.Node] = ()
) -> None:
    """Put the nodes of `branch`, and those of `after`, in the place of the node that holds it.

    `outputs`: what stands for the outputs of the node; without it, the outputs of the branch.
    """
    graph, index = node.graph, context.index
    outputs = list(branch.outputs) if outputs is None else outputs
    branch.outputs.clear()  # they are outputs of no graph any more
    results: dict[ir.Value, ir.Value] = {}
    body: list[ir.Node] = []
    for value in list(branch.initializers.values()):
        branch.initializers.pop(value.name)
        if index.scopes[graph].function is not None:
            made = as_constant(context, value, value.name)
            body.append(made)
            results[value] = made.outputs[0]
            value.replace_all_uses_with(made.outputs[0])
        else:
            value.name = index.fresh_name(value.name)
            graph.initializers.add(value)
    moved = list(branch)
    for inner in moved:
        branch.remove(inner)
        # Other branches may use the same names: they could not see each other.
        inner.name = index.fresh_name(inner.name) if inner.name else None
        for value in inner.outputs:
            if value.name:
                value.name = index.fresh_name(value.name)
        body.append(inner)
    graft(context, node, [*body, *after], [results.get(v, v) for v in outputs])
