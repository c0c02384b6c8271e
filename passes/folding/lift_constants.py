"""Constant nodes as initializers: one form of constant for all that follows."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Pass, constant_tensor, is_sparse, node_label


@dataclass(frozen=True)
class LiftConstants(Pass):
    """Turn Constant nodes into initializers of their graph, under the same name.

    Left alone: constants of functions, which have no initializers; sparse ones; those that a function's parameter gives.
    """

    name = "lift-constants"

    def run(self, context: Context) -> None:
        for node in context.index.of_types(("Constant",)):
            if node.domain not in ("", "ai.onnx") or context.scope(node).function is not None:
                continue
            value, graph = node.outputs[0], node.graph
            tensor = constant_tensor(value)
            if tensor is None or is_sparse(tensor):
                continue
            if value.is_graph_output():
                context.log.refuse(node, "it makes a graph output")
                continue
            if not value.uses() or not context.log.permit(node, node_label(node)):
                continue
            context.log.settled(node)
            lifted = ir.Value(
                name=value.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor,
                doc_string=value.doc_string or node.doc_string, metadata_props=dict(value.metadata_props),
            )
            lifted.meta.update(value.meta)
            value.replace_all_uses_with(lifted)
            value.name = None
            context.index.drop(node)
            graph.remove(node, safe=True)
            graph.initializers.add(lifted)
