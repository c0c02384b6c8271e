"""Which weights are read by products, and which by products and by rows alone, so that they can be stored in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.rewriting import Context, Refuse, constant_tensor, guards, is_sparse, same_domain

_TYPES = ("MatMul", "Gemm", "Gather")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(eq=False)
class Unit:
    """A constant matrix and all that reads it.

    Attributes:
        weight: the matrix.
        by_rows: an output (or a row of a table) is a row of it, so it is [N, K]; else it is [K, N].
        products: MatMul and Gemm whose second operand it is.
        tables: Gathers that read rows of it.
        transposes: what stands between it and some of the products.
    """

    weight: ir.Value
    by_rows: bool
    products: list[ir.Node] = field(default_factory=list)
    tables: list[ir.Node] = field(default_factory=list)
    transposes: list[ir.Node] = field(default_factory=list)

    @property
    def node(self) -> ir.Node:
        """The one that stands for the unit."""
        return (self.products or self.tables)[0]

    @property
    def readers(self) -> list[ir.Node]:
        return [*self.products, *self.tables]

    def size(self) -> tuple[int, int]:
        """N and K, while it is there."""
        rows, columns = constant_tensor(self.weight).shape.numpy()  # type: ignore[union-attr]
        return (rows, columns) if self.by_rows else (columns, rows)


def find_units(context: Context, *, tables: bool, min_elements: int) -> list[Unit]:
    """The units in the order of their first products. Refusals go to the log."""
    units, seen = [], set()
    for node in context.index.of_types(_TYPES if tables else _TYPES[:2]):
        if node.graph is None or not same_domain(node.domain, ""):
            continue
        value = _weight_of(node)
        if not _is_weight(value, min_elements):
            if node.op_type == "MatMul" and node.inputs and _is_weight(node.inputs[0], min_elements):
                context.log.refuse(node, "its weight is on the left, where the runtime has no such kernel")
            continue
        if value in seen:
            continue
        seen.add(value)
        try:
            units.append(_unit(context, value))  # type: ignore[arg-type]
        except Refuse as refusal:
            context.log.refuse(node, refusal.reason)
    return units


def bias_of(node: ir.Node) -> ir.Value | None:
    """What a Gemm adds."""
    return node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None


def _weight_of(node: ir.Node) -> ir.Value | None:
    """What a node reads as a weight, before a Transpose."""
    place = 0 if node.op_type == "Gather" else 1
    value = node.inputs[place] if place < len(node.inputs) else None
    producer = None if value is None else value.producer()
    if place and producer is not None and _swaps(producer):
        return producer.inputs[0]
    return value


def _swaps(node: ir.Node) -> bool:
    """Whether a node transposes a matrix."""
    if node.op_type != "Transpose" or not same_domain(node.domain, "") or not node.inputs:
        return False
    perm = node.attributes.get("perm")
    return perm is None or (not perm.is_ref() and tuple(perm.as_ints()) == (1, 0))


def _is_weight(value: ir.Value | None, least: int) -> bool:
    """Whether a value is a weight at all: anything else is no match, and no refusal."""
    if value is None:
        return False
    tensor = value.const_value if value.is_initializer() else constant_tensor(value)
    return tensor is not None and tensor.dtype in guards.FLOATS and len(tensor.shape) >= 2 and tensor.size >= least


def _unit(context: Context, weight: ir.Value) -> Unit:
    tensor = constant_tensor(weight)
    if tensor is None:
        raise Refuse(f"the weight {weight.name!r} is also a graph input, so a caller may override it")
    guards.require(not is_sparse(tensor), f"the weight {weight.name!r} is stored sparse")
    guards.require(not weight.is_graph_output(), f"the weight {weight.name!r} is also a graph output")
    guards.require(tensor.dtype in _FLOATS, f"the weight is {tensor.dtype.name}, not float32 or float16")
    guards.require(len(tensor.shape) == 2, f"its weight has {len(tensor.shape)} dimensions, not 2")
    unit, ways = Unit(weight, True), set()
    for node, turned, place in _readers(weight, unit):
        guards.require(same_domain(node.domain, ""), f"the weight {weight.name!r} is also consumed by {node.domain}::{node.op_type}")
        if node.op_type == "Gather" and place == 0 and not turned:
            guards.require(guards.attribute(node, "axis", 0) in (0, -2), f"{node.name!r} does not read rows of the table")
            unit.tables.append(node)
            ways.add(True)
        elif node.op_type in ("MatMul", "Gemm") and place == 1:
            _guard_product(context, node)
            unit.products.append(node)
            ways.add(turned != bool(node.op_type == "Gemm" and guards.attribute(node, "transB", 0)))
        else:
            raise Refuse(f"the weight {weight.name!r} is also consumed by {node.op_type}")
    guards.require(len(ways) == 1, f"the weight {weight.name!r} is read both by rows and by columns")
    unit.by_rows = ways.pop()
    return unit


def _readers(weight: ir.Value, unit: Unit) -> Iterator[tuple[ir.Node, bool, int]]:
    """What reads a weight, whether transposed, and as which input."""
    for usage in weight.uses():
        if not _swaps(usage.node):
            yield usage.node, False, usage.idx
            continue
        unit.transposes.append(usage.node)
        turned = usage.node.outputs[0]
        guards.require(not turned.is_graph_output(), f"the weight {weight.name!r}, transposed, is also a graph output")
        for inner in turned.uses():
            yield inner.node, True, inner.idx


def _guard_product(context: Context, node: ir.Node) -> None:
    if node.op_type == "MatMul":
        guards.require((context.rank(node.inputs[0]) or 0) >= 2, "the rank of its input is unknown or below 2")
    else:
        guards.require(not guards.attribute(node, "transA", 0), "its first input is transposed")
        guards.require(guards.attribute(node, "alpha", 1.0) == 1.0, "its product is scaled by alpha")
        guards.require(bias_of(node) is None or guards.attribute(node, "beta", 1.0) == 1.0, "its bias is scaled by beta")
    guards.require(constant_tensor(node.inputs[0]) is None, "both inputs are constant")
