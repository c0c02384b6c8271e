"""Where a constant scale or shift goes: the weights that it is folded into, past operators that only move elements."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Refuse, constant_tensor, guards, node_label, same_domain, use_count

from .arithmetic import rounded
from .linear import LINEAR, Linear, folded_name, read
from .movement import ONE_TO_ONE, Affine, part, passed, spread

FARTHEST = 8  # operators between the constant and a weight
BRANCHES = 16  # weights that one constant goes into

NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_TAKES_FACTORS = (*NORMALIZATIONS, "MatMul", "Max", "Add", "Mul")


class Nothing(Exception):
    """There are no weights in this direction."""


@dataclass
class Plan:
    """What changes: weights whose outputs or inputs are scaled, and constants that are added on the way.

    Attributes:
        outputs, inputs: a linear operator with the scale and the shift of each of its output or input channels.
        added: an addition of a constant, the place of the constant, and the new one.
        factors: other constants, by node and place, with what they are multiplied by: of normalizations, of additions and
            of products; None: nothing goes into these.
    """

    outputs: list[tuple[Linear, np.ndarray, np.ndarray]] = field(default_factory=list)
    inputs: list[tuple[Linear, np.ndarray, np.ndarray]] = field(default_factory=list)
    added: list[tuple[ir.Node, int, np.ndarray]] = field(default_factory=list)
    seen: set[ir.Node] = field(default_factory=set)
    factors: list[tuple[ir.Node, int, np.ndarray]] | None = None

    def visit(self, node: ir.Node, root: ir.Node) -> None:
        """Note a node on the way, which must be in the graph of `root` and there for the first time."""
        if node in self.seen or len(self.seen) > 4 * FARTHEST:
            raise Refuse("the paths to the weights meet")
        self.seen.add(node)
        guards.same_graph(root, node)

    def state(self, editor: Editor, limit: int) -> None:
        """State the changes through an editor; `limit`: the largest weight, in bytes, that is copied."""
        stated = []
        for linear, mul, shift in self.outputs:
            weight = bias = None
            if (mul != 1).any():
                linear.guard_growth(limit)
                weight = linear.weight_times_output(mul)
            if linear.bias is not None or shift.any():
                bias = linear.bias_array() * mul + shift
            stated.append((linear, weight, bias))
        for linear, mul, shift in self.inputs:
            weight = bias = None
            if shift.any():
                bias = linear.bias_array() + linear.answer_to_constant(shift)
            if (mul != 1).any():
                linear.guard_growth(limit)
                weight = linear.weight_times_input(mul)
            stated.append((linear, weight, bias))
        for linear, _, bias in stated:
            linear.guard_bias(bias)
        for linear, weight, bias in stated:
            linear.update(editor, weight=weight, bias=bias)
        for node, index, mul in self.factors or ():
            old = node.inputs[index]
            array = guards.float_constant(old, "the constant")
            new = rounded(array.astype(np.float64) * mul, array.dtype, "the constant")
            editor.set_input(node, index, editor.constant(new, folded_name(old.name)))  # type: ignore[union-attr]
        for node, index, array in self.added:
            dtype = constant_tensor(node.inputs[index]).dtype.numpy()  # type: ignore[union-attr]
            name = f"{node.inputs[index].name}_folded"  # type: ignore[union-attr]
            editor.set_input(node, index, editor.constant(rounded(array, dtype, "the shift"), name))


def back(
    value: ir.Value, affine: Affine, consumer: ir.Node | Container[ir.Node], root: ir.Node, plan: Plan, context: Context
) -> None:
    """Plan for the weights that `value`, consumed by `consumer` (one, or several) alone, comes from."""
    node = value.producer()
    if node is None or not same_domain(node.domain, ""):
        raise Nothing
    plan.visit(node, root)
    kind = node.op_type
    if kind in LINEAR and node.inputs[0] is not None and not (plan.factors is not None and _of_two_activations(node)):
        _only(value, "the output before it", consumer)
        _into_output(read(node, context), affine, plan, context)
        return
    if kind == "Add" and (product := biased(node)) is not None:
        _only(value, "the output before it", consumer)
        guards.only_consumer(product.outputs[0], "the product", node)
        _into_output(read(product, context, node), affine, plan, context)
        return
    if plan.factors is not None and kind in _TAKES_FACTORS:
        _only(value, f"the output of the {kind}", consumer)
        if _into_factors(node, affine, root, plan, context):
            return
    if kind == "Split":
        _only(value, "a part of a Split", consumer)
        axis, sizes, rank = _split(node, context)
        whole = spread(affine, rank, axis, sizes, list(node.outputs).index(value))
        back(node.inputs[0], whole, node, root, plan, context)  # type: ignore[arg-type]
        return
    if kind not in ONE_TO_ONE and kind not in ("Concat", "Add", "Sum"):
        raise Nothing
    _only(value, f"the output of the {kind}", consumer)
    if kind == "Concat":
        axis, sizes, _ = _concat(node, affine, context)
        for i, (v, start) in enumerate(zip(node.inputs, np.cumsum([0, *sizes]))):
            back(v, part(affine, axis, int(start), sizes[i]) if sizes else affine, node, root, plan, context)  # type: ignore[arg-type]
    elif kind in ONE_TO_ONE:
        back(node.inputs[0], passed(node, affine, back=True, context=context), node, root, plan, context)  # type: ignore[arg-type]
    else:
        dims = [context.dims(v) for v in (*node.inputs, node.outputs[0])]
        guards.require(affine.scalar or (None not in dims and len(set(dims)) == 1), "the sum before it broadcasts")
        guards.require(not affine.shifts or (None not in dims and len(set(dims)) == 1), "the sum before it broadcasts")
        for i, v in enumerate(node.inputs):
            back(v, affine if i == 0 else Affine.of(affine.mul, np.zeros(())), node, root, plan, context)  # type: ignore[arg-type]


def _of_two_activations(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and constant_tensor(node.inputs[1]) is None


def _only(value: ir.Value, what: str, consumer: ir.Node | Container[ir.Node]) -> None:
    """Refuse unless nothing else consumes a value."""
    if isinstance(consumer, ir.Node):
        guards.only_consumer(value, what, consumer)
        return
    if value.is_graph_output():
        raise Refuse(f"{what} {value.name!r} is also a graph output")
    others = [usage.node for usage in value.uses() if usage.node not in consumer]
    if others:
        raise Refuse(f"{what} {value.name!r} is also consumed by {node_label(others[0])}")


def ahead(value: ir.Value, affine: Affine, root: ir.Node, plan: Plan, context: Context) -> None:
    """Plan for all the weights that `value` goes to."""
    if value.is_graph_output() or use_count(value) > BRANCHES:
        raise Refuse(f"{value.name!r} is also a graph output") if plan.seen else Nothing
    uses = value.uses()
    if not uses:
        raise Nothing
    for usage in uses:
        node, index = usage.node, usage.idx
        plan.visit(node, root)
        kind = node.op_type
        if not same_domain(node.domain, ""):
            raise Nothing
        if kind in LINEAR and index == 0:
            _into_input(node, affine, plan, context)
        elif kind == "Split":
            axis, sizes, _ = _split(node, context)
            for v, start, size in zip(node.outputs, np.cumsum([0, *sizes]), sizes):
                ahead(v, part(affine, axis, int(start), size), root, plan, context)
        elif kind == "Concat":
            axis, sizes, rank = _concat(node, None, context)
            ahead(node.outputs[0], spread(affine, rank, axis, sizes, index), root, plan, context)
        elif kind in ("Add", "Sub") and (index == 0 or kind == "Add") and constant_tensor(node.inputs[1 - index]) is not None:
            _across_addition(node, 1 - index, affine, plan, context)
            ahead(node.outputs[0], affine, root, plan, context)
        elif kind in ONE_TO_ONE and index == 0:
            ahead(node.outputs[0], passed(node, affine, back=False, context=context), root, plan, context)
        else:
            raise Nothing


def _into_output(linear: Linear, affine: Affine, plan: Plan, context: Context) -> None:
    plan.outputs.append((linear, *affine.per_channel(linear.output_rank(context), linear.axis, linear.channels, "the output before it")))


def _into_factors(node: ir.Node, affine: Affine, root: ir.Node, plan: Plan, context: Context) -> bool:
    """Plan for the constants of an operator that takes a scale by them, or passes it on; False: it is none of these."""
    assert plan.factors is not None
    guards.require(not affine.shifts, "only a scale goes into other constants")
    kind = node.op_type
    if kind in NORMALIZATIONS:
        guards.unused_outputs(node)
        last = -1, (context.rank(node.inputs[0]) or 0) - 1
        guards.require(guards.attribute(node, "axis", -1) in last, f"the {kind} is over several axes")
        places = [i for i in range(1, len(node.inputs)) if node.inputs[i] is not None]
        guards.require(bool(places), "the normalization has no scale")
        for i in places:
            dims = context.static_dims(node.inputs[i])
            guards.require(dims is not None and len(dims) == 1, "the scale of the normalization is not one value a channel")
            mul, _ = affine.per_channel(context.rank(node.outputs[0]), -1, dims[0], "the normalization")  # type: ignore[index]
            plan.factors.append((node, i, mul))
        return True
    if kind == "MatMul":  # of two activations: what scales columns of the product scales those of its second input
        guards.require(affine.scalar or all(d == 1 for d in affine.mul.shape[:-1]) or affine.mul.shape[-2] == 1, "rows differ")
        dims = context.dims(node.inputs[1])
        guards.require(affine.scalar or (dims is not None and len(dims) == affine.mul.ndim), "the ranks around the MatMul differ")
        back(node.inputs[1], affine, node, root, plan, context)  # type: ignore[arg-type]
        return True
    if kind == "Max":
        slope = spelled_prelu(node)
        if slope is None:
            return False
        guards.require(bool((affine.mul > 0).all()), "only a positive scale passes a Max")
        x = next(v for v in node.inputs if v is not slope.outputs[0])
        plan.visit(slope, root)
        back(x, affine, (node, slope), root, plan, context)  # type: ignore[arg-type]
        return True
    place = next((i for i, v in enumerate(node.inputs) if constant_tensor(v) is not None), None)
    if place is None or affine.scalar or biased(node) is not None:
        return False
    dims, result = context.static_dims(node.inputs[place]), context.dims(node.outputs[0])
    shape = affine.mul.shape
    while dims is not None and len(shape) > len(dims) and shape[0] == 1:
        shape = shape[1:]
    # A constant that would grow, such as the half of a GELU, stays what it is: the runtime looks for it.
    if dims is None or dims != shape or result is None or len(result) != affine.mul.ndim:
        return False
    plan.factors.append((node, place, affine.mul.reshape(shape)))
    if kind == "Add":
        guards.require(context.dims(node.inputs[1 - place]) == result, "the sum before it broadcasts")
        back(node.inputs[1 - place], affine, node, root, plan, context)  # type: ignore[arg-type]
    return True


def spelled_prelu(node: ir.Node) -> ir.Node | None:
    """The Mul of max(x, x slope), with a constant slope."""
    if len(node.inputs) != 2:
        return None
    for value, other in (node.inputs, [*node.inputs][::-1]):
        mul = value.producer() if value is not None else None
        if mul is None or mul.op_type != "Mul" or use_count(value) != 1 or value.is_graph_output():
            continue
        if other in mul.inputs and any(constant_tensor(v) is not None for v in mul.inputs):
            return mul
    return None


def _into_input(node: ir.Node, affine: Affine, plan: Plan, context: Context) -> None:
    add = None
    if node.op_type == "MatMul" and use_count(node.outputs[0]) == 1 and not node.outputs[0].is_graph_output():
        (usage,) = node.outputs[0].uses()
        add = usage.node if usage.node.op_type == "Add" and biased(usage.node) is node else None
    try:
        linear = read(node, context, add)
    except Refuse:
        linear = read(node, context)
    axis = -1 if node.op_type == "MatMul" else 1
    if node.op_type == "Gemm":
        guards.require(not guards.attribute(node, "transA", 0), "the Gemm transposes its input")
    rank = context.rank(node.inputs[0]) if node.op_type == "MatMul" else len(linear.dims)
    plan.inputs.append((linear, *affine.per_channel(rank, axis, linear.inputs, "the input of the weights")))


def _across_addition(node: ir.Node, index: int, affine: Affine, plan: Plan, context: Context) -> None:
    """x m + a = (x + a / m) m."""
    guards.require(not affine.shifts and bool((affine.mul != 0).all()), "only a scale passes an addition")
    x = node.inputs[1 - index]
    value = guards.float_constant(node.inputs[index], "the constant").astype(np.float64)
    dims = context.dims(x)
    if dims is None or value.ndim > len(dims) or any(c not in (1, d) for c, d in zip(value.shape[::-1], dims[::-1])):
        raise Refuse("the constant that is added may widen the value")
    quotient = value / affine.mul
    guards.require(quotient.size <= max(value.size, 1 << 16), "the constant that is added would become large")
    plan.added.append((node, index, quotient))


def biased(add: ir.Node) -> ir.Node | None:
    """The MatMul to which an Add adds a constant."""
    for value, other in (add.inputs, [*add.inputs][::-1]):
        product = value.producer() if value is not None else None
        if product is not None and product.op_type == "MatMul" and constant_tensor(other) is not None:
            return product
    return None


def _split(node: ir.Node, context: Context) -> tuple[int, list[int], int]:
    """Axis and sizes of a Split, and the rank."""
    dims = [context.dims(v) for v in node.outputs]
    return _along(node, 0, dims, "the sizes of the Split are not known")


def _concat(node: ir.Node, affine: Affine | None, context: Context) -> tuple[int, list[int], int]:
    """Axis and sizes of a Concat, and the rank; sizes are empty where `affine` does not depend on that axis."""
    if affine is not None and affine.scalar:
        return 0, [], 0
    return _along(node, None, [context.dims(v) for v in node.inputs], "the sizes of what the Concat joins are not known")


def _along(node: ir.Node, default: int | None, dims: Sequence, reason: str) -> tuple[int, list[int], int]:
    axis = guards.attribute(node, "axis", default)
    if axis is None or any(d is None for d in dims):
        raise Refuse(reason)
    rank = len(dims[0])
    sizes = [d[axis] for d in dims]
    guards.require(all(isinstance(s, int) for s in sizes), reason)
    return axis % rank, sizes, rank
