"""Operators that the runtime has no integer kernel for, or a slow one, in operators that it has fast ones for.

What each is worth was measured on x86-64 with AVX-512 VNNI, ONNX Runtime 1.32, one thread, between two 1x1 convolutions
of 64 channels at 56x56: microseconds above those for the two alone.

| operator | float between conversions | its own integer kernel | as written here |
|---|---|---|---|
| PRelu | 830 (as max(x, a x): 200) | none | 81 |
| HardSwish | 156 | none | 106 |
| BatchNormalization | 127 | none | 32 |
| AveragePool 3x3 | 204 | 1036 | 72 |
| Pad | 107 | none | 48 |
| Relu of a value that is read elsewhere | 83 | none | 54 |

Left in float, because their integer kernels are slower than float with its conversions: Softmax (430 beside 250), Where,
linear Resize.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Refuse, constant_tensor, guards, scalar_of

from ..algebra.batchnorm import read_bn
from ..arguments import ints, normal_axes
from .arithmetic import Grid, activation_grid, least_scale, pack_array
from .writing import Writer

_MOST_CHANNELS = 1 << 14

#: Writes a node on integers: the writer, the node, its activations on their grids; gives the result, on a grid or in float.
Write = Callable[[Writer, ir.Node, list[ir.Value]], ir.Value]


@dataclass(frozen=True)
class Form:
    """How one node is written on integers.

    Attributes:
        inputs: places of the inputs that are activations.
        write: writes it.
        inner: nodes before it that it stands for too.
        moves: whether the result is on the grid of the first activation.
        settles: whether the result has a grid that does not follow from samples.
        convolves: whether it becomes a convolution.
    """

    inputs: tuple[int, ...]
    write: Write
    inner: tuple[ir.Node, ...] = ()
    moves: bool = False
    settles: bool = False
    convolves: bool = False


def find_form(context: Context, node: ir.Node) -> Form | None:
    """The form of a node; None where it has none, or none that would be right."""
    maker = _MAKERS.get(node.op_type)
    if maker is None:
        return None
    try:
        return maker(context, node)
    except Refuse:
        return None


# --- activations ------------------------------------------------------------------------------------------------


def _prelu(context: Context, node: ir.Node) -> Form | None:
    return _rectified(context, node, guards.float_constant(node.inputs[1], "the slope"), 0)


def _max(context: Context, node: ir.Node) -> Form | None:
    """max(x, a x), as another pass writes PRelu."""
    if len(node.inputs) != 2:
        return None
    for place in (0, 1):
        x, scaled = node.inputs[place], node.inputs[1 - place]
        product = scaled.producer() if scaled is not None else None
        if product is None or product.op_type != "Mul" or product.domain != "" or x not in product.inputs:
            continue
        factor = product.inputs[1] if product.inputs[0] is x else product.inputs[0]
        if constant_tensor(factor) is not None:
            return _rectified(context, node, guards.float_constant(factor, "the slope"), place, (product,))
    return None


def _rectified(context: Context, node: ir.Node, slopes: np.ndarray, place: int, inner: tuple[ir.Node, ...] = ()) -> Form | None:
    """x where it is positive, else a x: x + (a - 1) min(x, 0), where rounding to a grid that ends at zero is the min."""
    if slopes.dtype != np.float32 or slopes.size == 0 or not np.isfinite(slopes).all() or (slopes == 1).all():
        return None
    factor = slopes.astype(np.float64) - 1
    channels = _by_channel(context, node.inputs[place], slopes)

    def write(writer: Writer, node: ir.Node, given: list[ir.Value]) -> ir.Value:
        (x,), editor, output = given, writer.editor, node.outputs[0]
        if (slopes == slopes.flat[0]).all():
            return editor.node("LeakyRelu", [x], {"alpha": float(slopes.flat[0])}, name=node.name, like=output)
        grid, name = writer.grids[x], f"{output.name}_below"
        below = (_least(grid) - int(grid.zero)) * float(grid.scale)  # the most negative number of x's grid

        def product(value: ir.Value, by: np.ndarray, low: float, high: float) -> ir.Value:
            if channels is not None:
                made = _depthwise(writer, value, by.astype(np.float32).reshape(channels), None, {}, name, output)
            else:
                made = editor.node("Mul", [value, writer.constant_array(by, f"{name}_factor")], name=name, like=output)
            return writer.pair(made, activation_grid(low, high, writer.signed), name)

        least, most = min(0.0, float(factor.min())), max(0.0, float(factor.max()))
        if least == 0 or most == 0:  # of one sign: what x > 0 gives lies beyond the end of the grid
            change = product(x, factor, below * most, below * least)
        else:
            size = product(x, -np.abs(factor), 0.0, -below * max(most, -least))
            change = product(size, -np.sign(factor), below * most, below * least)
        return editor.node("Add", [x, change], name=node.name, like=output)

    return Form((place,), write, inner)


def _by_channel(context: Context, x: ir.Value | None, factors: np.ndarray) -> tuple[int, ...] | None:
    """The shape of the weight of a depthwise convolution that multiplies x by factors, where there is one a channel of x."""
    dims = context.dims(x)
    if dims is None or not 3 <= len(dims) <= 5 or not isinstance(dims[1], int) or factors.ndim > len(dims):
        return None
    wide = (1,) * (len(dims) - factors.ndim) + factors.shape
    return (dims[1], 1, *wide[2:]) if wide == (1, dims[1], *[1] * (len(dims) - 2)) else None


def _relu(context: Context, node: ir.Node) -> Form | None:
    """As a LeakyRelu, which has a kernel."""

    def write(writer: Writer, node: ir.Node, given: list[ir.Value]) -> ir.Value:
        return writer.editor.node("LeakyRelu", given, {"alpha": 0.0}, name=node.name, like=node.outputs[0])

    return Form((0,), write)


def _hard_sigmoid(context: Context, node: ir.Node) -> Form | None:
    alpha, beta = float(guards.attribute(node, "alpha", 0.2)), float(guards.attribute(node, "beta", 0.5))
    if not (alpha > 0 and 0 <= beta <= 1):
        return None
    return Form((0,), lambda writer, node, given: _gate(writer, given[0], alpha, beta, node.outputs[0]), settles=True)


def _hard_swish(context: Context, node: ir.Node) -> Form | None:
    def write(writer: Writer, node: ir.Node, given: list[ir.Value]) -> ir.Value:
        gate = _gate(writer, given[0], 1 / 6, 0.5, node.outputs[0])
        return writer.editor.node("Mul", [given[0], gate], name=node.name, like=node.outputs[0])

    return Form((0,), write)


def _gate(writer: Writer, x: ir.Value, alpha: float, beta: float, like: ir.Value) -> ir.Value:
    """clip(alpha x + beta, 0, 1), which is but a rounding of x: its integers, read with another scale and zero.

    255 steps would put 0.5 between two integers: so many are taken that beta is on one. The last may lie above 1.
    """
    steps = min(range(255, 239, -1), key=lambda n: (round(abs(beta * n - round(beta * n)), 9), -n))
    scale = np.float32(1 / steps)
    wide = Grid(np.asarray(np.float32(float(scale) / alpha)), writer.number(round(beta * steps)))
    stored = writer.integers(x, wide, f"{like.name}_line")
    return writer.read(stored, Grid(np.asarray(scale), writer.number(0)), f"{like.name}_gate", like=like)


def _least(grid: Grid) -> int:
    return int(np.iinfo(grid.zero.dtype).min)


# --- sums over channels and places --------------------------------------------------------------------------------


def _batch_normalization(context: Context, node: ir.Node) -> Form | None:
    """As a depthwise convolution of one place: one kernel, and its sums are exact."""
    dims = context.dims(node.inputs[0])
    if dims is None or not 3 <= len(dims) <= 5 or not isinstance(dims[1], int):
        return None
    factor, shift = read_bn(node, context, dims[1])
    weight = np.asarray(factor, np.float32).reshape(-1, *[1] * (len(dims) - 1))
    guards.finite(weight, "the scale")
    guards.finite(np.asarray(shift), "the shift")
    return _as_depthwise(0, weight, np.asarray(shift), {})


def _average_pool(context: Context, node: ir.Node) -> Form | None:
    """As a depthwise convolution, whose kernel is many times faster; all its weights are the same integer."""
    dims = context.dims(node.inputs[0])
    kernel = guards.attribute(node, "kernel_shape")
    pads = guards.attribute(node, "pads")
    counts = bool(guards.attribute(node, "count_include_pad", 0)) or not any(pads or ())
    plain = not guards.attribute(node, "ceil_mode", 0) and guards.attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if dims is None or not isinstance(dims[1], int) or not 3 <= len(dims) <= 5 or not counts or not plain:
        return None
    weight = np.full((dims[1], 1, *kernel), 1 / math.prod(kernel), np.float32)
    attributes = {name: guards.attribute(node, name) for name in ("kernel_shape", "pads", "strides", "dilations")}
    return _as_depthwise(0, weight, None, attributes)


def _as_depthwise(place: int, weight: np.ndarray, shift: np.ndarray | None, attributes: dict[str, Any]) -> Form:
    def write(writer: Writer, node: ir.Node, given: list[ir.Value]) -> ir.Value:
        return _depthwise(writer, given[0], weight, shift, attributes, node.name, node.outputs[0])

    return Form((place,), write, convolves=True)


def _depthwise(
    writer: Writer, x: ir.Value, weight: np.ndarray, shift: np.ndarray | None, attributes: dict[str, Any], name: str | None,
    like: ir.Value,
) -> ir.Value:  # fmt: skip
    axis = 0 if writer.per_channel else None
    least = None if shift is None else least_scale(shift, writer.grids[x].scale)
    packed, scale, _ = pack_array(weight, axis, writer.top, least)
    inputs = [x, writer.weight(packed, scale, axis, f"{like.name}_weight")]
    if shift is not None:
        inputs.append(writer.bias(shift, writer.grids[x].scale * np.atleast_1d(scale), f"{like.name}_bias"))
    return writer.editor.node("Conv", inputs, {**attributes, "group": weight.shape[0]}, name=name, like=like)


def _scaled(context: Context, node: ir.Node) -> Form | None:
    """By a positive number: the same integers, read with another scale. By one number a channel: a depthwise convolution."""
    for place in (0, 1) if node.op_type == "Mul" else (0,):
        other = node.inputs[1 - place]
        tensor = constant_tensor(other)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or not 0 < tensor.size <= _MOST_CHANNELS:
            continue
        factors = tensor.numpy().astype(np.float64)
        if not np.isfinite(factors).all() or (node.op_type == "Div" and not factors.all()):
            return None
        factors = 1 / factors if node.op_type == "Div" else factors
        if factors.size == 1:
            factor = float(factors.reshape(()))
            keeps_rank = factors.ndim <= (context.rank(node.inputs[place]) or 0)
            return _relabeled(place, factor) if factor >= np.finfo(np.float32).tiny and keeps_rank else None
        channels = _by_channel(context, node.inputs[place], factors)
        return None if channels is None else _as_depthwise(place, factors.astype(np.float32).reshape(channels), None, {})
    return None


def _relabeled(place: int, factor: float) -> Form:
    def write(writer: Writer, node: ir.Node, given: list[ir.Value]) -> ir.Value:
        grid, output = writer.grids[given[0]], node.outputs[0]
        wider = Grid(np.asarray(np.float32(float(grid.scale) * factor)), grid.zero)
        return writer.read(writer.stored(given[0]), wider, output.name, like=output)

    return Form((place,), write, settles=True)


def _reduce_mean(context: Context, node: ir.Node) -> Form | None:
    """Over all places of each channel: a GlobalAveragePool."""
    rank, axes = context.rank(node.inputs[0]), ints(context, node, "axes", 1)
    if rank is None or rank < 3 or not isinstance(axes, tuple) or sorted(normal_axes(axes, rank) or ()) != list(range(2, rank)):
        return None
    keeps = bool(guards.attribute(node, "keepdims", 1))

    def write(writer: Writer, node: ir.Node, given: list[ir.Value]) -> ir.Value:
        output, editor = node.outputs[0], writer.editor
        if keeps:
            return editor.node("GlobalAveragePool", given, name=node.name, like=output)
        pooled = editor.node("GlobalAveragePool", given, name=f"{output.name}_pooled")
        grid = writer.grids[output]
        pooled = writer.pair(pooled, grid, f"{output.name}_pooled")
        return editor.node("Flatten", [pooled], {"axis": 1}, name=node.name, like=output)

    return Form((0,), write)


# --- movement -----------------------------------------------------------------------------------------------------


def _pad(context: Context, node: ir.Node) -> Form | None:
    """On the integers themselves; the runtime would keep it in float."""
    mode = guards.attribute(node, "mode", "constant")
    border = node.inputs[2] if len(node.inputs) > 2 else None
    if context.opset(node) < 11 or mode not in ("constant", "reflect", "edge"):
        return None
    if mode == "constant" and border is not None and scalar_of(border) != 0:
        return None

    def write(writer: Writer, node: ir.Node, given: list[ir.Value]) -> ir.Value:
        grid, editor, output = writer.grids[given[0]], writer.editor, node.outputs[0]
        inputs = [writer.stored(given[0]), *node.inputs[1:]]
        if mode == "constant":
            inputs[2:3] = [editor.constant(grid.zero, f"{output.name}_border")]
        return writer.read(editor.node("Pad", inputs, dict(node.attributes), name=node.name), grid, output.name, like=output)

    return Form((0,), write, moves=True)




_MAKERS: dict[str, Callable[[Context, ir.Node], Form | None]] = {
    "PRelu": _prelu, "Max": _max, "Relu": _relu, "HardSigmoid": _hard_sigmoid, "HardSwish": _hard_swish,
    "BatchNormalization": _batch_normalization, "AveragePool": _average_pool, "ReduceMean": _reduce_mean, "Pad": _pad,
    "Mul": _scaled, "Div": _scaled,
}  # fmt: skip
