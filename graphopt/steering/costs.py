"""What an application may save where nothing was measured: the products and sums of the node that it is at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graphopt.pipeline.runner import Application
from graphopt.rewriting import constant_tensor
from graphopt.rewriting.base import node_label


def estimated(graph: ir.Model, applications: Iterable[Application]) -> dict[int, float]:
    """Application -> multiplications of the node that it was made at, by the name that both have; 1 where that is not known.

    graph: the model before the applications, with inferred shapes as far as there are any. Dimensions that are not
    known count as 1, so that of several nodes over one of them the same part is missing.
    """
    by_label = {node_label(node): node for node in graph.graph.all_nodes()}
    return {a.number: multiplications(by_label[a.label]) if a.label in by_label else 1.0 for a in applications}


def multiplications(node: ir.Node) -> float:
    """Of one run of a node: of a product as many as it makes, of others one for each element of the result."""
    results = _elements(node.outputs[0]) if node.outputs else 1.0
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = constant_tensor(weight) if weight is not None else None
    dims = list(tensor.shape.numpy()) if tensor is not None else _dims(weight)
    if node.op_type in ("Conv", "ConvTranspose") and len(dims) > 2:
        places = results if node.op_type == "Conv" else _elements(node.inputs[0])
        return places * math.prod(dims[1:])
    if node.op_type in ("MatMul", "Gemm") and len(dims) > 1:
        inner = dims[1] if node.op_type == "Gemm" and _flag(node, "transB") else dims[-2]
        return results * inner
    return results


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and not attribute.is_ref() and bool(attribute.value)


def _dims(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None:
        return []
    return [d if isinstance(d, int) else 1 for d in value.shape]


def _elements(value: ir.Value | None) -> float:
    return float(math.prod(_dims(value)))


def shares(saves: Mapping[int, float]) -> dict[int, float]:
    """Each one's part of the whole."""
    whole = sum(saves.values())
    return {number: value / whole if whole else 0.0 for number, value in saves.items()}
