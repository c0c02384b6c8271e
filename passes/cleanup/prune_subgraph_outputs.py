"""Results of If and Loop that nothing takes, and values that a Loop carries without changing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Pass, attribute_graphs, is_used

from ..arguments import in_function

_CARRIED = 2  # where the inputs of a Loop and of its body begin that are carried: after the count and the condition


@dataclass(frozen=True)
class PruneSubgraphOutputs(Pass):
    """Drop outputs of If and Loop that nothing takes, and let a Loop read what it carries unchanged from outside.

    What only they needed in the subgraphs is then dead.
    """

    name = "prune-subgraph-outputs"

    def run(self, context: Context) -> None:
        for node in context.index.of_types(("If", "Loop")):
            if node.graph is None or node.domain not in ("", "ai.onnx") or in_function(context, node.outputs[0]):
                continue
            if any(attribute.is_ref() for attribute in node.attributes.values()):
                continue
            if node.op_type == "Loop":
                _release_unchanged(context, node)
            gone = _unused(node)
            if gone and len(gone) < len(node.outputs) and context.log.permit(node):
                _without(context, node, gone)


def _release_unchanged(context: Context, node: ir.Node) -> None:
    """Let the body and all behind the Loop take the first value of what the body hands on as it came."""
    body = node.attributes["body"].as_graph()
    for i, first in enumerate(node.inputs[_CARRIED:]):
        inner, result, output = body.inputs[i + _CARRIED], body.outputs[i + 1], node.outputs[i]
        if first is None or output.is_graph_output() or not (output.uses() or _read_elsewhere(inner, result)):
            continue
        if _source(result) is inner and context.log.permit(node):
            users = [u.node for u in inner.uses()]
            for user in users:
                if user is not result.producer():
                    for index, value in enumerate(user.inputs):
                        if value is inner:
                            user.replace_input_with(index, first)
            output.replace_all_uses_with(first)


def _read_elsewhere(inner: ir.Value, result: ir.Value) -> bool:
    return any(usage.node is not result.producer() for usage in inner.uses())


def _source(value: ir.Value) -> ir.Value:
    """The value that an Identity hands on, or the value itself."""
    producer = value.producer()
    return producer.inputs[0] if producer is not None and producer.op_type == "Identity" else value  # type: ignore[return-value]


def _unused(node: ir.Node) -> set[int]:
    """The numbers of outputs that nothing takes and that no later round of a Loop needs."""
    gone = {i for i, value in enumerate(node.outputs) if not is_used(value)}
    if node.op_type == "Loop":
        body = node.attributes["body"].as_graph()
        for i in range(len(node.inputs) - _CARRIED):
            inner, result = body.inputs[i + _CARRIED], body.outputs[i + 1]
            if i in gone and (_read_elsewhere(inner, result) or (_source(result) is not inner and inner.uses())):
                gone.discard(i)
    return gone


def _without(context: Context, node: ir.Node, gone: Collection[int]) -> None:
    """Put a node without the outputs `gone` in the place of `node`; it takes over the subgraphs."""
    graphs = [g for a in node.attributes.values() for g in attribute_graphs(a)]
    inputs = list(node.inputs)
    if node.op_type == "Loop":
        carried = len(inputs) - _CARRIED
        inputs = [v for i, v in enumerate(inputs) if i < _CARRIED or i - _CARRIED not in gone]
        for i in sorted((i for i in gone if i >= carried), reverse=True):
            graphs[0].outputs.pop(i + 1)  # not del, which leaves the value marked as an output
        for i in sorted((i for i in gone if i < carried), reverse=True):
            _drop_carried(graphs[0], i, context)
    else:
        for graph in graphs:
            for i in sorted(gone, reverse=True):
                graph.outputs.pop(i)
    kept = [value for i, value in enumerate(node.outputs) if i not in gone]
    attributes = list(node.attributes.values())
    node.attributes.clear()  # the subgraphs live on
    made = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=len(kept), name=node.name, doc_string=node.doc_string)
    made.metadata_props.update(node.metadata_props)
    graph = node.graph
    graph.insert_before(node, made)
    for old, new in zip(kept, made.outputs):
        name, old.name = old.name, context.index.fresh_name(f"{old.name}/replaced")
        new.name, new.type, new.shape = name, old.type, old.shape
        new.meta.update(old.meta)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    context.log.provenance([made], [node])
    context.index.drop(node)
    context.index.add(made)
    for inner in graphs:
        context.index.scopes[inner] = dataclasses.replace(context.index.scopes[inner], owner=made)
    graph.remove(node, safe=True)


def _drop_carried(body: ir.Graph, number: int, context: Context) -> None:
    """Take a carried value out of a body: nothing but an Identity that hands it on reads it."""
    inner, result = body.inputs[number + _CARRIED], body.outputs[number + 1]
    body.outputs.pop(number + 1)
    producer = result.producer()
    if producer is not None and inner in producer.inputs and producer.graph is body:
        context.index.drop(producer)
        body.remove(producer, safe=True)
    body.inputs.pop(number + _CARRIED)
