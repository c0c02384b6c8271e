"""A constant per-channel Mul, Add, Sub or Div beside a linear operator goes into its weight and bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Refuse, Rewrite, const, constant_tensor, guards, op, option, var

from .arithmetic import elementwise_affine
from .batchnorm import guard_inference, read_bn
from .linear import DEFAULT_GROWTH, GROWTH_HELP, Linear, check_per_channel, read

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_COMMUTATIVE = ("Add", "Mul", "Sub")  # Sub: either operand may be the constant
_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")
_FUSED_BEHIND = ("Erf", "Tanh", "Sqrt", "Sigmoid", "ReduceMean", "Reciprocal")
_LOOK_BACK = 12  # nodes of a spelled-out activation or normalization


@dataclass(frozen=True)
class FoldAffine(Rewrite):
    """Fold a constant scale or shift per channel into the Conv, ConvTranspose, Gemm or MatMul beside it.

    Behind the operator, (W x + b) * m + a = (W m) x + (b m + a); before it, W (x * m + a) + b = (W m) x + (b + W a), for
    which a Conv must not pad where a is not zero. The number of nodes never grows.
    """

    name = "fold-affine"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})

    max_growth_bytes: int = option(DEFAULT_GROWTH, GROWTH_HELP, minimum=0)

    def patterns(self) -> Sequence[Pattern]:
        matrix = op("MatMul", var(), const(), bind="linear")
        biased = op("Add", matrix, const("bias"), commutative=True, bind="add")
        after = [
            op(types, source, const("constant"), commutative=types is not _DIVISION, bind="after")
            for source in (op(_WITH_BIAS, bind="linear"), biased, matrix)
            for types in (_COMMUTATIVE, _DIVISION)
        ]
        shift = op(("Add", "Sub"), var("x"), const("constant"), commutative=True, bind="before")
        norm = op("BatchNormalization", var("x"), ..., bind="before")
        scales = (
            op("Mul", var("x"), const("constant"), commutative=True, bind="before"),
            op("Div", var("x"), const("constant"), bind="before"),
        )
        shifted = [op("MatMul", source, const(), bind="linear") for source in (shift, norm)]
        return (
            *(op("Add", product, const("bias"), commutative=True, bind="add") for product in shifted),
            *after,
            *(op("MatMul", source, const(), bind="linear") for source in scales),
            *(op(_WITH_BIAS, source, ..., bind="linear") for source in (shift, *scales, norm)),
        )

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fold_affine

        fold_affine.run(context, self.max_growth_bytes)

    def rewrite(self, match: Match, editor: Editor) -> None:
        if "after" in match:
            self._after(match, editor)
        else:
            self._before(match, editor)

    def _after(self, match: Match, editor: Editor) -> None:
        context, node, root = editor.context, match["linear"], match.root
        add = match.bound.get("add")
        if node.op_type == "MatMul" and add is None and root.op_type in ("Add", "Sub"):
            return  # a MatMul's bias: there is nothing to fold it into
        guards.same_graph(*match.nodes)
        linear = read(node, context, add)
        if add is not None:
            guards.only_consumer(node.outputs[0], "the product", add)
        guards.only_consumer(linear.output, "the output before it", root)
        constant = match["constant"]
        dims = context.static_dims(constant)
        check_per_channel(dims or (), linear.output_rank(context), linear.axis, linear.channels, "the constant")
        mul, shift = _affine(root, constant, linear.channels)
        bias = linear.bias_array() * mul + shift
        weight = None
        if (mul != 1).any():
            linear.guard_growth(self.max_growth_bytes)
            weight = linear.weight_times_output(mul)
        needed = linear.bias is not None or bool(bias.any())
        if needed and node.op_type == "MatMul" and add is None:
            raise Refuse("a MatMul has no bias")
        linear.state(editor, old=root.outputs[0], x=node.inputs[0], weight=weight, bias=bias if needed else None)

    def _before(self, match: Match, editor: Editor) -> None:
        context, node, before, x = editor.context, match["linear"], match["before"], match["x"]
        add = match.bound.get("add")
        guards.same_graph(*match.nodes)
        linear = read(node, context, add)
        guards.only_consumer(before.outputs[0], "the scaled input", node)
        if add is not None:
            guards.only_consumer(node.outputs[0], "the product", add)
        if before.op_type == "BatchNormalization":
            guard_inference(before, context)
            if node.op_type in ("Gemm", "MatMul"):
                guards.require(node.op_type == "Gemm" or context.rank(x) == 2, "its channels are not on the axis that the MatMul sums over")
                guards.require(not guards.attribute(node, "transA", 0), "the Gemm transposes its input")
            mul, shift = read_bn(before, context, linear.inputs)
        else:
            constant = match["constant"]
            _check_input_constant(linear, x, context.static_dims(constant) or (), context)
            guard_runtime_fusion(x)
            mul, shift = _affine(before, constant, linear.inputs)
        bias: ir.Value | np.ndarray | None = linear.bias
        if shift.any():
            bias = linear.bias_array() + linear.answer_to_constant(shift)
        elif linear.bias is not None and linear.beta != 1:
            bias = linear.bias_array()
        weight = None
        if (mul != 1).any():
            linear.guard_growth(self.max_growth_bytes)
            weight = linear.weight_times_input(mul)
        linear.state(editor, old=linear.output, x=x, weight=weight, bias=bias)


_DIVISION = ("Div",)


def _affine(node: ir.Node, constant: ir.Value, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add`, one value a channel, of an elementwise operator with a constant operand."""
    value = guards.float_constant(constant, "the constant").reshape(-1)
    return affine_of(node, constant, np.broadcast_to(value, (channels,)))


def affine_of(node: ir.Node, constant: ir.Value, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add` of an elementwise operator whose operand `constant` has the given value."""
    return elementwise_affine(node.op_type, value, constant_first=node.inputs[0] is constant)


def _check_input_constant(linear: Linear, x: ir.Value, dims: tuple[int, ...], context: Context) -> None:
    """Refuse unless the constant of shape `dims` holds one value, or one an input channel, and does not change the shape of `x`."""
    shape = context.dims(x)
    is_matmul = linear.node.op_type == "MatMul"
    axis = -1 if is_matmul else 1
    if linear.node.op_type == "Gemm" and guards.attribute(linear.node, "transA", 0):
        axis = 0
    if len(dims) > (0 if shape is None else len(shape)):
        raise Refuse("the rank of the input is not known" if shape is None else "the constant adds dimensions to the input")
    check_per_channel(dims, None if shape is None else len(shape), axis, linear.inputs, "the constant")
    if any(d != 1 for d in dims) and (shape is None or shape[axis] != linear.inputs):
        raise Refuse("the constant may widen the input")


def guard_runtime_fusion(x: ir.Value) -> None:
    """Refuse to take the last factor off an activation or a normalization that is spelled out.

    Runtimes recognize these by their whole shape (GELU, LayerNormalization) and run them as one operator; what is left
    without the factor would run node by node.
    """
    front, seen = [x.producer()], 0
    while front and seen < _LOOK_BACK:
        node = front.pop(0)
        if node is None:
            continue
        seen += 1
        if node.op_type in _FUSED_BEHIND:
            raise Refuse("it ends an activation or a normalization that the runtime fuses")
        if node.op_type in ("Add", "Mul", "Div", "Sub") and constant_tensor(node.outputs[0]) is None:
            front.extend(v.producer() for v in node.inputs if v is not None)
