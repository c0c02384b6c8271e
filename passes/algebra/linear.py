"""Conv, ConvTranspose, Gemm and MatMul seen alike: a constant weight, a bias, channels in and out.

Reading one refuses where its weight or bias cannot be folded into; nothing is read from the weight until it is needed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Refuse, constant_tensor, guards, is_sparse, use_count

from . import arithmetic

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")

DEFAULT_GROWTH = 1 << 16
_SUFFIX = re.compile(r"(_folded(_\d+)?)+$")
GROWTH_HELP = "largest weight, in bytes, that is copied because other nodes use it too"


@dataclass(frozen=True)
class Linear:
    """One linear operator.

    Attributes:
        node: the operator.
        add: the Add of a constant behind a MatMul, which is its bias; otherwise None.
        weight: its constant weight.
        bias: its constant bias, or None.
        dims: the shape of the weight.
        channels, inputs: numbers of output and input channels.
        group: groups of a convolution.
        transposed: whether a Gemm transposes its weight.
        alpha, beta: factors of a Gemm.
    """

    node: ir.Node
    add: ir.Node | None
    weight: ir.Value
    bias: ir.Value | None
    dims: tuple[int, ...]
    channels: int
    inputs: int
    group: int = 1
    transposed: bool = False
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def output(self) -> ir.Value:
        """What it computes, bias included."""
        return (self.add or self.node).outputs[0]

    @property
    def axis(self) -> int:
        """The axis of the output that holds the channels."""
        return -1 if self.node.op_type == "MatMul" else 1

    def output_rank(self, context: Context) -> int | None:
        """The rank of the output, or None where it is not known."""
        return context.rank(self.node.outputs[0]) if self.node.op_type == "MatMul" else len(self.dims)

    def bias_array(self) -> np.ndarray:
        """The bias as it is added to each output channel, in double precision."""
        if self.bias is None:
            return np.zeros(self.channels)
        bias = guards.float_constant(self.bias, "the bias").astype(np.float64).reshape(-1) * self.beta
        return np.broadcast_to(bias, (self.channels,))

    # --- folding ------------------------------------------------------------------------------------------------

    def weight_times_output(self, mul: np.ndarray) -> np.ndarray:
        """The weight with each output channel scaled."""
        weight = guards.float_constant(self.weight, "the weight")
        if self.node.op_type == "Conv":
            return arithmetic.scaled(weight, arithmetic.conv_output_factor(mul, weight))
        if self.node.op_type == "ConvTranspose":
            return arithmetic.scaled(weight, arithmetic.transposed_output_factor(mul, weight, self.group))
        return arithmetic.scaled(weight, mul[:, None] if self.transposed else mul[None, :])

    def weight_times_input(self, mul: np.ndarray) -> np.ndarray:
        """The weight with each input channel scaled."""
        weight = guards.float_constant(self.weight, "the weight")
        if self.node.op_type == "Conv":
            return arithmetic.scaled(weight, arithmetic.conv_input_factor(mul, weight, self.group))
        if self.node.op_type == "ConvTranspose":
            return arithmetic.scaled(weight, mul.reshape(-1, *[1] * (weight.ndim - 1)))
        return arithmetic.scaled(weight, mul[None, :] if self.transposed else mul[:, None])

    def answer_to_constant(self, per_channel: np.ndarray) -> np.ndarray:
        """What the operator, bias aside, answers to an input that is constant in each channel."""
        weight = guards.float_constant(self.weight, "the weight")
        if self.node.op_type == "Conv":
            if not unpadded(self.node):
                raise Refuse("the convolution pads, so a constant before it does not reach the border alike")
            return arithmetic.conv_of_constant(weight, per_channel, self.group)
        if self.node.op_type == "ConvTranspose":
            raise Refuse("a transposed convolution adds up fewer terms at the border than inside")
        return self.alpha * arithmetic.row_times_matrix(per_channel, weight.T if self.transposed else weight)

    # --- stating the replacement --------------------------------------------------------------------------------

    def state(
        self, editor: Editor, *, old: ir.Value, x: ir.Value, weight: ir.Value | np.ndarray | None, bias: ir.Value | np.ndarray | None
    ) -> tuple[ir.Value, ir.Value | None]:
        """State the operator anew, over `x` and in the place of `old`.

        `weight` None keeps the weight, `bias` None means that there is none. A MatMul without an Add behind it that
        gets a bias becomes a Gemm, which only a MatMul of rank 2 may.

        Returns:
            The weight and the bias that were put in.
        """
        dtype = constant_tensor(self.weight).dtype.numpy()  # type: ignore[union-attr]
        if weight is None:
            weight = self.weight
        elif isinstance(weight, np.ndarray):
            weight = editor.constant(weight, folded_name(self.weight.name))
        if isinstance(bias, np.ndarray):
            array = arithmetic.rounded(bias, dtype, "the bias")
            source = self.bias.name if self.bias is not None else f"{_SUFFIX.sub('', self.weight.name or '')}_bias"
            bias = editor.constant(array, folded_name(source))
        attributes = dict(self.node.attributes)
        attributes.pop("beta", None)
        op_type, inputs = self.node.op_type, [x, weight]
        if op_type == "MatMul" and self.add is None and bias is not None:
            op_type = "Gemm"
        if op_type != "MatMul" and bias is not None:
            inputs.append(bias)
        separate = op_type == "MatMul" and bias is not None
        new = editor.node(op_type, inputs, attributes, name=self.node.name or None, like=self.node.outputs[0] if separate else old)
        if separate:
            new = editor.node("Add", [new, bias], name=self.add.name or None, like=old)  # type: ignore[union-attr]
        editor.replace(old, new)
        return weight, bias

    def update(self, editor: Editor, *, weight: np.ndarray | None, bias: np.ndarray | None) -> None:
        """Give the operator, where it stands, another weight and another bias (None: as it is)."""
        dtype = constant_tensor(self.weight).dtype.numpy()  # type: ignore[union-attr]
        if weight is not None:
            editor.set_input(self.node, 1, editor.constant(weight, folded_name(self.weight.name)))
        if bias is None or (self.bias is None and not bias.any()):
            return
        source = self.bias.name if self.bias is not None else f"{_SUFFIX.sub('', self.weight.name or '')}_bias"
        value = editor.constant(arithmetic.rounded(bias, dtype, "the bias"), folded_name(source))
        if self.add is not None:
            editor.set_input(self.add, list(self.add.inputs).index(self.bias), value)
            return
        editor.set_input(self.node, 2, value)
        if self.node.op_type == "Gemm" and self.beta != 1:
            editor.set_attribute(self.node, "beta", None)

    def guard_bias(self, bias: np.ndarray | None) -> None:
        """Refuse a bias for a MatMul that has none."""
        if bias is not None and bias.any() and self.node.op_type == "MatMul" and self.add is None:
            raise Refuse("a MatMul has no bias")

    def guard_growth(self, limit: int) -> None:
        """Refuse where a copy of the weight would stand beside the original, and is large."""
        tensor = constant_tensor(self.weight)
        shared = self.weight.is_graph_output() or use_count(self.weight) > 1
        if shared and tensor is not None and tensor.nbytes > limit:
            raise Refuse(f"the weight {self.weight.name!r} has other consumers, and a copy for this one would add {tensor.nbytes} bytes")


def folded_name(name: str | None) -> str:
    """The name of a weight that was folded into, which says so once however often it was."""
    return f"{_SUFFIX.sub('', name or '')}_folded"


def read(node: ir.Node, context: Context, add: ir.Node | None = None) -> Linear:
    """The operator at `node` (with the Add of a constant behind it), or a refusal that says what cannot be folded into."""
    weight = node.inputs[1]
    if weight is not None and constant_tensor(weight) is None and _dequantized(weight):
        raise Refuse("the weight is quantized")
    dims = _constant_dims(weight, "the weight")
    guards.require(math.prod(dims) > 0, "the weight is empty")
    assert weight is not None
    if node.op_type == "MatMul":
        guards.require(len(dims) == 2, "the weight is not a matrix")
        found = Linear(node, add, weight, None, dims, channels=dims[1], inputs=dims[0])
        if add is None:
            return found
        bias = next((v for v in add.inputs if v is not node.outputs[0]), None)
        bias_dims = _constant_dims(bias, "the bias")
        check_per_channel(bias_dims, context.rank(node.outputs[0]), -1, found.channels, "the bias")
        return replace(found, bias=bias)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    bias_dims = None if bias is None else _constant_dims(bias, "the bias")
    if node.op_type == "Gemm":
        guards.require(context.opset(node) >= 7, "Gemm broadcasts otherwise before opset 7")
        transposed = bool(guards.attribute(node, "transB", 0))
        guards.require(len(dims) == 2, "the weight is not a matrix")
        inputs, channels = reversed(dims) if transposed else dims
        if bias_dims is not None:
            check_per_channel(bias_dims, 2, 1, channels, "the bias")
        alpha, beta = float(guards.attribute(node, "alpha", 1.0)), float(guards.attribute(node, "beta", 1.0))
        return Linear(node, None, weight, bias, dims, channels, inputs, transposed=transposed, alpha=alpha, beta=beta)
    group = int(guards.attribute(node, "group", 1))
    guards.require(len(dims) >= 3, "the weight has no spatial axis")
    channels, inputs = (dims[0], dims[1] * group) if node.op_type == "Conv" else (dims[1] * group, dims[0])
    guards.require(group > 0 and dims[0] % group == 0, "the groups do not divide the channels")
    guards.require(bias_dims in (None, (channels,)), "the bias does not fit the output channels")
    return Linear(node, None, weight, bias, dims, channels, inputs, group=group)


def check_per_channel(dims: tuple[int, ...], rank: int | None, axis: int, channels: int, what: str) -> None:
    """Refuse unless a constant of shape `dims` holds one value, or one a channel, of a value of the given rank.

    It must not add dimensions, nor widen one. A rank that is not known (None) is at least 1.
    """
    if len(dims) > (1 if rank is None else rank):
        raise Refuse(f"{what} has more dimensions than what it is combined with" if rank is not None else "the rank is not known")
    place = len(dims) - 1 if axis == -1 else axis - (rank or 0) + len(dims)
    for i, dim in enumerate(dims):
        if dim != 1 and not (i == place and dim == channels):
            raise Refuse(f"{what} is not one value a channel")


def unpadded(node: ir.Node) -> bool:
    """Whether a convolution pads nowhere."""
    auto_pad = guards.attribute(node, "auto_pad", "NOTSET")
    return auto_pad == "VALID" or (auto_pad == "NOTSET" and not any(guards.attribute(node, "pads", ())))


def _constant_dims(value: ir.Value | None, what: str) -> tuple[int, ...]:
    """The shape of a constant floating-point input, whose data are not read."""
    tensor = constant_tensor(value)
    if tensor is None or value is None:
        guards.constant(value, what)  # refuses, and says why
        raise AssertionError
    if tensor.dtype not in guards.FLOATS:
        raise Refuse(f"{what} {value.name!r} is {tensor.dtype.name}, not a type that can be folded")
    guards.require(not is_sparse(tensor), f"{what} {value.name!r} is stored sparse")
    return tuple(tensor.shape.numpy())


def _dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear")
