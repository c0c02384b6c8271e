"""How the body of a graph takes the place of one node: shared by what inlines functions and branches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from graphopt.rewriting import Context, attribute_graphs, remove_unused


def graft(context: Context, node: ir.Node, body: Sequence[ir.Node], results: Sequence[ir.Value]) -> None:
    """Let `body`, nodes that are in no graph yet, and the values `results` take the place of `node` and its outputs.

    A result may be an output of `body`, or any value that `node` can see; the names of the node's outputs stay where a
    node of `body` makes them.
    """
    graph = node.graph
    assert graph is not None
    graph.insert_before(node, body)
    for new in body:
        context.index.add(new)
    context.log.provenance([*body, *(inner for new in body for inner in nodes_within(new))], [node])
    own = {value for new in body for value in new.outputs}
    for old, new in zip(node.outputs, results):
        if not (old.uses() or old.is_graph_output()):
            continue
        if old.is_graph_output():
            if new not in own or new.is_graph_output():
                holder = ir.Node("", "Identity", [new], num_outputs=1, name=context.index.fresh_name(f"{old.name}/identity"))
                graph.insert_before(node, holder)
                context.index.add(holder)
                context.log.provenance([holder], [node])
                new = holder.outputs[0]
        elif new not in own:
            old.replace_all_uses_with(new)
            continue
        name, old.name = old.name, context.index.fresh_name(f"{old.name}/replaced")
        new.name = name
        own.discard(new)  # a second output that is the same value cannot bear its name too
        if old.is_graph_output():
            new.type, new.shape = old.type, old.shape
            new.meta.update(old.meta)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    remove_unused([node], context)


def nodes_within(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of the subgraphs of a node, at any depth."""
    pending = [g for a in node.attributes.values() for g in attribute_graphs(a)]
    while pending:
        for inner in pending.pop():
            yield inner
            pending.extend(g for a in inner.attributes.values() for g in attribute_graphs(a))


def all_nodes(body: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """The nodes of a graph or function and of its subgraphs; a parameter in the place of a subgraph is passed over."""
    for node in body:
        yield node
        yield from nodes_within(node)


def as_constant(context: Context, value: ir.Value, name: str) -> ir.Node:
    """A Constant node that makes the data that the initializer `value` has, or had."""
    made = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)], num_outputs=1, name=context.index.fresh_name(name))
    made.outputs[0].name = context.index.fresh_name(name)
    made.outputs[0].type, made.outputs[0].shape = value.type, value.shape
    return made
