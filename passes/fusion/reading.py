"""Reading an operator that is spelled out, from a node in its middle: what stands behind it, and where its result goes.

A fusion starts at its rarest node (an Erf, a Sqrt) and walks both ways. Constants are compared with the wanted number
as their own type rounds it, never with a tolerance.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Match, Refuse, constant_tensor, guards, same_domain, use_count

from ..arguments import keeps_shape

_FEW = 8  # consumers that are looked at
_LEAVES = 12  # factors of a product, or terms of a sum


def made_by(value: ir.Value | None, *types: str) -> ir.Node | None:
    """The standard operator of one of `types` that computes `value`, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in types and same_domain(node.domain, "") else None


def goes_to(value: ir.Value, *types: str) -> ir.Node | None:
    """The one node that consumes `value`, in its own graph, where it is a standard operator of one of `types`."""
    if use_count(value) != 1 or value.is_graph_output():
        return None
    node = value.uses()[0].node
    wanted = node.op_type in types and same_domain(node.domain, "") and node.graph is value.graph
    return node if wanted else None


def consumers(value: ir.Value) -> list[ir.Node]:
    """The nodes that consume `value`; none where they are many."""
    return [] if use_count(value) > _FEW else list(dict.fromkeys(usage.node for usage in value.uses()))


def operand(node: ir.Node, beside: ir.Value) -> ir.Value | None:
    """The operand of a binary operator beside another; `beside` itself where it is both."""
    first, second = node.inputs[0], node.inputs[1]
    return second if first is beside else first if second is beside else None


def number(value: ir.Value | None) -> float | None:
    """The value of a constant with one element, of any numeric type, or None."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED, ir.DataType.BOOL):
        return None
    element = tensor.numpy().reshape(()).item()
    return None if isinstance(element, complex) else float(element)


def equals(value: ir.Value | None, *numbers: float) -> bool:
    """Whether a constant has one element, which is one of `numbers` as its type rounds it."""
    found = number(value)
    if found is None:
        return False
    dtype = constant_tensor(value).dtype.numpy()  # type: ignore[union-attr]
    with np.errstate(over="ignore"):
        return any(found == float(np.asarray(n, np.float64).astype(dtype)) for n in numbers)


def beside(context: Context, node: ir.Node, x: ir.Value) -> ir.Value | None:
    """The constant with one element beside `x` in a binary operator, if the result has the shape of `x`."""
    other = operand(node, x)
    if other is None or number(other) is None:
        return None
    dims = context.dims(other)
    return other if dims == () or keeps_shape(context.dims(x), dims) else None


def halved(context: Context, node: ir.Node | None, x: ir.Value) -> bool:
    """Whether a node computes x / 2."""
    if node is None or beside(context, node, x) is None:
        return False
    if node.op_type == "Mul":
        return equals(operand(node, x), 0.5)
    return node.op_type == "Div" and node.inputs[0] is x and equals(node.inputs[1], 2.0)


def factors(value: ir.Value, stop: ir.Value) -> tuple[list[ir.Value], list[ir.Node]]:
    """The factors of a product of Mul nodes, which is not taken apart beyond `stop`, and the nodes between."""
    leaves: list[ir.Value] = []
    nodes: list[ir.Node] = []
    pending = [value]
    while pending:
        top = pending.pop()
        node = None if top is stop else made_by(top, "Mul")
        if node is None or len(leaves) + len(pending) > _LEAVES:
            leaves.append(top)
        else:
            nodes.append(node)
            pending.extend(v for v in node.inputs if v is not None)
    return leaves, nodes


def claim(match: Match, nodes: list[ir.Node], last: ir.Node) -> None:
    """Take `nodes` into the match; refuse where something else needs what is computed before `last`."""
    match.nodes.extend(n for n in dict.fromkeys(nodes) if n not in match.nodes)
    guards.same_graph(*match.nodes)
    members = set(match.nodes)
    for node in match.nodes:
        for value in node.outputs:
            if node is last:
                continue
            if value.is_graph_output():
                raise Refuse(f"{value.name!r}, inside it, is also a graph output")
            if use_count(value) > _FEW or any(usage.node not in members for usage in value.uses()):
                raise Refuse(f"{value.name!r}, inside it, has other consumers")


def needs_opset(context: Context, node: ir.Node, op_type: str, version: int) -> None:
    """Refuse where the model's opset does not have an operator yet."""
    found = context.opset(node)
    if found < version:
        raise Refuse(f"{op_type} needs opset {version}, and the model has {found}")
