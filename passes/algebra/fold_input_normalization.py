"""The normalization of a model's input goes into the weights of its first convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Refuse, Rewrite, constant_tensor, guards, op, option, same_domain

from . import arithmetic
from .linear import DEFAULT_GROWTH, GROWTH_HELP, Linear, check_per_channel, read, unpadded

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
_ON_THE_WAY = ("Cast", "Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape")
_FARTHEST = 16  # nodes between a graph input and its convolution


@dataclass(frozen=True)
class _Chain:
    """What stands between a graph input and its convolution.

    Attributes:
        x: where the normalization begins.
        steps: the elementwise operators, the last first: node, constant operand, other operand, axis of the channels.
        transposes: the Transposes among them, the last first.
    """

    x: ir.Value
    steps: tuple[tuple[ir.Node, ir.Value, ir.Value, int], ...]
    transposes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class FoldInputNormalization(Rewrite):
    """Fold the normalization of an input, (x - mean) / std in any spelling, into the first Conv, Transposes passed by.

    Where the Conv pads with zeros the scale goes into the weights and one Add stays: Conv(x m + a) is Conv'(x + a / m).
    Measured on a 3x3 Conv of 4 channels over 224x224 and 640x640: 1.05 to 1.10 times as fast for two steps, 1.12 to 1.15
    for three.
    To pad with the mean instead, with a Pad before a Conv that does not, was measured to gain nothing reliable under
    ONNX Runtime 1.32 (0.94 to 1.02 times as fast for 3x3 kernels).
    """

    name = "fold-input-normalization"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})

    max_growth_bytes: int = option(DEFAULT_GROWTH, GROWTH_HELP, minimum=0)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Conv", op((*_ELEMENTWISE, "Transpose")), ..., bind="conv"),)

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fold_input_normalization

        fold_input_normalization.run(context, self.max_growth_bytes)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, conv = editor.context, match["conv"]
        chain = _chain(conv)
        if chain is None or not chain.steps or not _from_input(chain.x):
            return
        linear = read(conv, context)
        _guard_only_path(chain, conv)
        mul, shift = _composed(chain, linear, context)
        keeps_add = bool(shift.any()) and not unpadded(conv)
        if keeps_add and len(chain.steps) == 1:
            raise Refuse("the convolution pads with zeros, so a shift before it does not reach the border alike")
        linear.guard_growth(self.max_growth_bytes)
        x = chain.x
        for transpose in reversed(chain.transposes):
            x = editor.node("Transpose", [x], dict(transpose.attributes), name=transpose.name or None)
        bias: ir.Value | np.ndarray | None = linear.bias
        if keeps_add:
            guards.require(bool((mul != 0).all()), "it multiplies by zero")
            add = least_shift(shift / mul, len(linear.dims), constant_tensor(linear.weight).dtype.numpy())  # type: ignore[union-attr]
            first = chain.steps[0][0]
            x = editor.node("Add", [x, editor.constant(add, f"{chain.steps[0][1].name}_folded")], name=first.name or None)
        elif shift.any():
            bias = linear.bias_array() + linear.answer_to_constant(shift)
        weight = linear.weight_times_input(mul) if (mul != 1).any() else None
        linear.state(editor, old=linear.output, x=x, weight=weight, bias=bias)


def _chain(conv: ir.Node) -> _Chain | None:
    """The elementwise operators with a constant and the Transposes before a convolution; None where one is unclear."""
    value, axis = conv.inputs[0], 1
    steps: list[tuple[ir.Node, ir.Value, ir.Value, int]] = []
    transposes: list[ir.Node] = []
    while len(steps) + len(transposes) < _FARTHEST:
        node = value.producer()  # type: ignore[union-attr]
        if node is None or not same_domain(node.domain, "") or node.graph is not conv.graph:
            break
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            if perm is None or perm.is_ref() or axis >= len(perm.value):
                return None
            axis = perm.value[axis]
            transposes.append(node)
            value = node.inputs[0]
            continue
        if node.op_type not in _ELEMENTWISE:
            break
        left, right = node.inputs
        if constant_tensor(right) is not None:
            constant, other = right, left
        elif node.op_type != "Div" and constant_tensor(left) is not None:
            constant, other = left, right
        else:
            break
        steps.append((node, constant, other, axis))  # type: ignore[arg-type]
        value = other
    # Transposes that come first of all stay where they are.
    while transposes and transposes[-1].inputs[0] is value:
        value = transposes.pop().outputs[0]
    return _Chain(value, tuple(steps), tuple(transposes))  # type: ignore[arg-type]


def _from_input(value: ir.Value) -> bool:
    """Whether a value is a graph input, but for its type and layout."""
    for _ in range(_FARTHEST):
        node = value.producer()
        if node is None:
            return value.is_graph_input()
        if node.op_type not in _ON_THE_WAY or not same_domain(node.domain, "") or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False


def _guard_only_path(chain: _Chain, conv: ir.Node) -> None:
    """Refuse where something between the input and the convolution has another consumer."""
    consumer = conv
    while consumer.inputs and (value := _main_input(consumer, chain)) is not chain.x:
        guards.only_consumer(value, "the normalized input", consumer)
        consumer = value.producer()  # type: ignore[assignment]


def _main_input(node: ir.Node, chain: _Chain) -> ir.Value:
    return next((other for step, _, other, _ in chain.steps if step is node), node.inputs[0])  # type: ignore[return-value]


def _composed(chain: _Chain, linear: Linear, context: Context) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add`, one value an input channel, with normalized = x * mul + add."""
    rank, channels = len(linear.dims), linear.inputs
    mul, shift = np.ones(channels), np.zeros(channels)
    for node, constant, other, axis in reversed(chain.steps):
        dims = context.static_dims(constant) or ()
        check_per_channel(dims, rank, axis, channels, "the constant")
        if any(d != 1 for d in dims):
            shape = context.dims(other)
            guards.require(shape is not None and len(shape) == rank and shape[axis] == channels, "the constant may widen the input")
        value = guards.finite(guards.float_constant(constant, "the constant"), "the constant").astype(np.float64).reshape(-1)
        value = np.broadcast_to(value, (channels,))
        if node.op_type == "Mul":
            mul, shift = mul * value, shift * value
        elif node.op_type == "Div":
            guards.require(bool((value != 0).all()), "it divides by zero")
            mul, shift = mul / value, shift / value
        elif node.op_type == "Add":
            shift = shift + value
        elif node.inputs[0] is constant:
            mul, shift = -mul, value - shift
        else:
            shift = shift - value
    return mul, shift


def least_shift(shift: np.ndarray, rank: int, dtype: np.dtype) -> np.ndarray:
    """A shift for an Add before the convolution: a scalar where all channels have one value."""
    array = arithmetic.rounded(shift, dtype, "the shift")
    return array[0].reshape(()) if (array == array[0]).all() else array.reshape(1, -1, *[1] * (rank - 2))
