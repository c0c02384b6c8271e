"""Which inputs an operator needs of, where only some places along an axis of its output are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, is_used, same_domain

from ..arguments import UNKNOWN, int_elements, integer, ints, normal_axes

PRODUCTS = frozenset(("MatMul", "Gemm"))

# Computed place by place, operands broadcast.
_ELEMENTWISE = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min",
    "Mish", "Mul", "Neg", "Not", "Or", "Pow", "PRelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where",
))  # fmt: skip
_ALONG_AXIS = frozenset(("Softmax", "LogSoftmax"))
_NORMALIZATIONS = frozenset(("LayerNormalization", "RMSNormalization"))
_REDUCTIONS = frozenset(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare"))


@dataclass(frozen=True)
class Needed:
    """What of an operator's inputs makes the places asked for.

    Attributes:
        inputs: (number of the input, its axis) for those of which the same places suffice; the others are needed whole.
        target: what a Reshape is to make of them, where that changes.
    """

    inputs: tuple[tuple[int, int], ...]
    target: tuple[int, ...] | None = None


def needed(node: ir.Node, axis: int, count: int, context: Context) -> Needed | None:
    """What `count` places along `axis` (from the front) of the output need; None where they need all, or it is not known."""
    if not same_domain(node.domain, "") or any(is_used(v) for v in node.outputs[1:]):
        return None
    kind = node.op_type
    if kind in _ELEMENTWISE or kind == "Concat":
        return _broadcast(node, axis, context)
    if kind in _ALONG_AXIS or kind in _NORMALIZATIONS:
        return _along_axis(node, axis, context)
    if kind in _REDUCTIONS:
        return _reduction(node, axis, context)
    if kind == "MatMul":
        return _matmul(node, axis, context)
    if kind == "Gemm":
        return _gemm(node, axis, context)
    if kind == "Transpose":
        return _transpose(node, axis)
    if kind == "Reshape":
        return _reshape(node, axis, count, context)
    return None


def _broadcast(node: ir.Node, axis: int, context: Context) -> Needed | None:
    output = context.dims(node.outputs[0])
    if output is None:
        return None
    if node.op_type == "Concat":
        along = integer(node, "axis", 0)
        if along is None or along % len(output) == axis:
            return None
        return Needed(tuple((i, axis) for i in range(len(node.inputs))))
    inputs = []
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        dims = context.dims(value)
        if dims is None:
            return None
        place = axis - len(output) + len(dims)
        if place < 0 or dims[place] == 1 != output[axis]:
            continue
        if dims[place] != output[axis]:
            return None
        inputs.append((i, place))
    return Needed(tuple(inputs)) if inputs else None


def _along_axis(node: ir.Node, axis: int, context: Context) -> Needed | None:
    rank, along = context.rank(node.inputs[0]), integer(node, "axis", -1)
    if rank is None or along is None or (node.op_type in _ALONG_AXIS and context.opset(node) < 13):
        return None
    along %= rank
    if axis == along or (node.op_type in _NORMALIZATIONS and axis > along):
        return None
    if any((context.rank(v) or rank) > rank - along for v in node.inputs[1:] if v is not None):
        return None  # a scale that is not the same everywhere
    return Needed(((0, axis),))


def _reduction(node: ir.Node, axis: int, context: Context) -> Needed | None:
    axes, rank = ints(context, node, "axes", 1), context.rank(node.inputs[0])
    if axes is None or axes == UNKNOWN or integer(node, "keepdims", 1) != 1:
        return None
    axes = normal_axes(axes, rank)  # type: ignore[arg-type]
    return None if axes is None or axis in axes or not axes else Needed(((0, axis),))


def _matmul(node: ir.Node, axis: int, context: Context) -> Needed | None:
    left, right = context.rank(node.inputs[0]), context.rank(node.inputs[1])
    if left is None or right is None or min(left, right) < 2 or axis != max(left, right) - 2:
        return None
    return Needed(((0, left - 2),))


def _gemm(node: ir.Node, axis: int, context: Context) -> Needed | None:
    transposed = integer(node, "transA", 0)
    if axis != 0 or transposed is None or context.opset(node) < 7:
        return None
    inputs = [(0, 1 if transposed else 0)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        dims, output = context.dims(node.inputs[2]), context.dims(node.outputs[0])
        if dims is None or output is None:
            return None
        if len(dims) == 2 and dims[0] != 1:
            if dims[0] != output[0]:
                return None
            inputs.append((2, 0))
    return Needed(tuple(inputs))


def _transpose(node: ir.Node, axis: int) -> Needed | None:
    perm = node.attributes.get("perm")
    return None if perm is None or perm.is_ref() else Needed(((0, int(perm.as_ints()[axis])),))


def _reshape(node: ir.Node, axis: int, count: int, context: Context) -> Needed | None:
    before, after = context.dims(node.inputs[0]), context.dims(node.outputs[0])
    target = int_elements(context, node.inputs[1])  # type: ignore[arg-type]
    if before is None or after is None or isinstance(target, str):
        return None
    if 0 in target and integer(node, "allowzero", 0) != 0:
        return None  # an empty value
    if before[: axis + 1] != after[: axis + 1] or len(target) != len(after):
        return None
    if target[axis] == 0:
        return Needed(((0, axis),))
    return Needed(((0, axis),), (*target[:axis], count, *target[axis + 1 :]))
