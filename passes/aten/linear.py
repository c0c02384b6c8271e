"""Convolutions, linear layers and matrix products of an ATen graph seen alike: a constant weight, a bias, channels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.rewriting import Refuse

from ..algebra import arithmetic
from .window import Window, window_of

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

CONVS = (
    "aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default",
    "aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding",
)  # fmt: skip
TRANSPOSED = ("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
CONVOLUTION = "aten.convolution.default"  # what the ones above become where they are decomposed
LINEAR = "aten.linear.default"
PRODUCTS = ("aten.addmm.default", "aten.mm.default", "aten.matmul.default")
OPERATORS = (*CONVS, *TRANSPOSED, CONVOLUTION, LINEAR, *PRODUCTS)

_SUFFIX = re.compile(r"(_folded(_\d+)?)+$")


@dataclass(frozen=True)
class Linear:
    """One linear operator.

    Attributes:
        node: the operator.
        kind: "conv", "transposed", "linear" (weight [N, K]) or "product" (weight [K, N]).
        x: what it is applied to.
        weight: the placeholder of its constant weight.
        bias: the placeholder of its constant bias, or None.
        shape: of the weight.
        channels, inputs: numbers of output and input channels.
        group: groups of a convolution.
        alpha, beta: factors of an addmm.
    """

    node: Node
    kind: str
    x: Node
    weight: Node
    bias: Node | None
    shape: tuple[int, ...]
    channels: int
    inputs: int
    group: int = 1
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def axis(self) -> int:
        """The axis of the output that holds the channels."""
        return 1 if self.kind in ("conv", "transposed") else -1

    def weight_array(self, context: AtenContext) -> np.ndarray:
        """The weight, read only."""
        return context.required_float(self.weight, "the weight")

    def bias_array(self, context: AtenContext) -> np.ndarray:
        """The bias as it is added to each output channel, in double precision; zeros where there is none."""
        if self.bias is None:
            return np.zeros(self.channels)
        bias = context.required_float(self.bias, "the bias").astype(np.float64).reshape(-1) * self.beta
        return np.broadcast_to(bias, (self.channels,))

    def weight_times_output(self, context: AtenContext, mul: np.ndarray) -> np.ndarray:
        """The weight with each output channel scaled by `mul` [channels]."""
        weight = self.weight_array(context)
        if self.kind == "conv":
            return arithmetic.scaled(weight, arithmetic.conv_output_factor(mul, weight))
        if self.kind == "transposed":
            return arithmetic.scaled(weight, arithmetic.transposed_output_factor(mul, weight, self.group))
        return arithmetic.scaled(weight, mul[:, None] if self.kind == "linear" else mul[None, :])

    def weight_times_input(self, context: AtenContext, mul: np.ndarray) -> np.ndarray:
        """The weight with each input channel scaled by `mul` [inputs]."""
        weight = self.weight_array(context)
        if self.kind == "conv":
            return arithmetic.scaled(weight, arithmetic.conv_input_factor(mul, weight, self.group))
        if self.kind == "transposed":
            return arithmetic.scaled(weight, mul.reshape(-1, *[1] * (weight.ndim - 1)))
        return arithmetic.scaled(weight, mul[None, :] if self.kind == "linear" else mul[:, None])

    def answer_to_constant(self, context: AtenContext, per_channel: np.ndarray) -> np.ndarray:
        """What the operator, bias aside, answers to an input that is constant in each channel."""
        if self.kind == "transposed":
            raise Refuse("a transposed convolution adds up fewer terms at the border than inside")
        weight = self.weight_array(context)
        if self.kind == "conv":
            if not self.unpadded(context):
                raise Refuse("the convolution pads, so a constant before it does not reach the border alike")
            return arithmetic.conv_of_constant(weight, per_channel, self.group)
        return self.alpha * arithmetic.row_times_matrix(per_channel, weight.T if self.kind == "linear" else weight)

    def window(self, context: AtenContext) -> Window:
        """Where a convolution has its taps."""
        return window_of(context.arguments(self.node), self.shape[2:])

    def unpadded(self, context: AtenContext) -> bool:
        """Whether a convolution pads nowhere."""
        return not self.window(context).padded

    def guard_growth(self, context: AtenContext, limit: int) -> None:
        """Refuse where a copy of the weight would stand beside the original, and is large."""
        if len(self.weight.users) > 1:
            size = context.weight_bytes(self.weight)
            if size > limit:
                name = context.program.name_of(self.weight)
                raise Refuse(f"the weight {name!r} has other users, and a copy for this one would add {size} bytes")

    def state(self, editor: AtenEditor, *, like: Node, weight: np.ndarray | None, bias: np.ndarray | Node | None, x: Node | None = None,
              made_of: tuple[Node, ...] = ()) -> Node:  # fmt: skip
        """State the operator anew with another weight (None: the same) and bias (None: none); returns its output.

        Args:
            like: a node of the type and shape of the output.
            made_of: further tensors that weight and bias were computed from, for the report.

        Raises:
            Refuse: the operator cannot have a bias.
        """
        context = editor.context
        held = [n for n in (self.weight, self.bias) if n is not None]
        name = context.program.name_of(self.weight) or "weight"
        dtype = np.asarray(context.required(self.weight, "the weight")).dtype
        new_weight, new_bias = self.weight, bias
        if weight is not None:
            new_weight = editor.constant(weight, folded_name(name), made_of=[self.weight, *made_of])
        if isinstance(bias, np.ndarray):
            source = context.program.name_of(self.bias) if self.bias is not None else None
            array = arithmetic.rounded(bias, dtype, "the bias")
            new_bias = editor.constant(
                array, folded_name(source or bias_name(name)), made_of=[*held[1:], *(held[:1] if not held[1:] else ()), *made_of]
            )
        return self._call(editor, x if x is not None else self.x, new_weight, new_bias, like)

    def again(self, editor: AtenEditor, weight: Node, bias: Node | None, *, like: Node, x: Node | None = None) -> Node:
        """State the operator with a weight and a bias that are there; returns its output. `like` as in `state`."""
        return self._call(editor, self.x if x is None else x, weight, bias, like)

    def _call(self, editor: AtenEditor, x: Node, weight: Any, bias: Any, like: Node) -> Node:
        operator = editor.context.op(self.node)
        if operator in PRODUCTS:
            if bias is None:
                if self.alpha != 1:
                    raise Refuse("a product with a factor of its own needs a bias")
                return editor.call("aten.mm.default" if operator == "aten.addmm.default" else operator, [x, weight], like=like)
            if len(editor.context.shape(x) or ()) != 2:
                raise Refuse("a product of this rank has no bias")
            factor = {} if self.alpha == 1 else {"alpha": self.alpha}
            return editor.call("aten.addmm.default", [bias, x, weight], factor, like=like)
        given = editor.context.arguments(self.node)
        given["input"], given["weight"], given["bias"] = x, weight, bias
        return editor.call(operator, list(given.values()), like=like)


def read(node: Node, context: AtenContext) -> Linear:
    """The operator at `node`, or a refusal that says what cannot be folded into."""
    operator, given = context.op(node), context.arguments(node)
    if operator in PRODUCTS:
        x, weight, bias = _product(operator, given)
        shape = _weight_shape(context, weight)
        context.require(len(shape) == 2, "the weight is not a matrix")
        if bias is not None:
            _guard_bias(context, bias, shape[1])
        if operator == "aten.addmm.default":
            factors = {name: _number(given[name]) for name in ("alpha", "beta")}
            return Linear(node, "product", x, weight, bias, shape, shape[1], shape[0], **factors)
        return Linear(node, "product", x, weight, None, shape, shape[1], shape[0])
    x, weight, bias = given["input"], given["weight"], given["bias"]
    shape = _weight_shape(context, weight)
    if operator == LINEAR:
        context.require(len(shape) == 2, "the weight is not a matrix")
        found = Linear(node, "linear", x, weight, bias, shape, shape[0], shape[1])
    else:
        transposed = operator in TRANSPOSED or bool(given.get("transposed", False))
        group = given["groups"]
        context.require(isinstance(group, int) and len(shape) >= 3, "the convolution's weight has no spatial axis")
        channels, inputs = (shape[1] * group, shape[0]) if transposed else (shape[0], shape[1] * group)
        context.require(context.rank(x) == len(shape), "the input has no batch axis")
        found = Linear(node, "transposed" if transposed else "conv", x, weight, bias, shape, channels, inputs, group)
    if bias is not None:
        _guard_bias(context, bias, found.channels)
    return found


def is_linear(value: Any, context: AtenContext) -> bool:
    """Whether a value comes from a linear operator; not from the product of two computed values, as in attention."""
    operator = context.op(value)
    if operator not in PRODUCTS:
        return operator in OPERATORS
    return context.is_constant(_product(operator, context.arguments(value))[1])


def call_conv(
    editor: AtenEditor, x: Node, weight: Node, bias: Node | None, window: Window, group: int, *, like: Node | None, general: bool = False
) -> Node:
    """State a convolution that pads both sides alike; `general`: as the operator that all are decomposed to."""
    count = len(window.kernel)
    given: list[Any] = [x, weight, bias, list(window.stride), list(window.begins), list(window.dilation)]
    if general:
        return editor.call(CONVOLUTION, [*given, False, [0] * count, group], like=like)
    return editor.call(f"aten.conv{count}d.default", [*given, group], like=like)


def folded_name(name: str) -> str:
    """The name of a tensor that was folded into, which says so once however often it was."""
    return f"{_SUFFIX.sub('', name)}_folded"


def bias_name(weight: str) -> str:
    """The name of a bias beside a weight of that name."""
    plain = _SUFFIX.sub("", weight)
    stem, dot, last = plain.rpartition(".")
    return f"{stem}{dot}bias" if last == "weight" else f"{plain}_bias"


def _product(operator: str, given: dict[str, Any]) -> tuple[Any, Any, Any]:
    if operator == "aten.addmm.default":
        return given["mat1"], given["mat2"], given["self"]
    return given["self"], given.get("mat2", given.get("other")), None


def _weight_shape(context: AtenContext, weight: Any) -> tuple[int, ...]:
    shape = context.static_shape(weight)
    if not context.is_constant(weight) or shape is None:
        context.required(weight, "the weight")
        raise Refuse("the weight is not constant")
    context.require(context.dtype(weight) in ("float16", "bfloat16", "float32", "float64"), f"the weight is {context.dtype(weight)}")
    context.require(0 not in shape, "the weight is empty")
    return shape


def _guard_bias(context: AtenContext, bias: Any, channels: int) -> None:
    if not context.is_constant(bias):
        context.required(bias, "the bias")
    context.require(context.static_shape(bias) == (channels,), "the bias does not fit the output channels")


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise Refuse("a factor of the product is not a known number")
    return float(value)
