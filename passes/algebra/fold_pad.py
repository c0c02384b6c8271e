"""A Pad before a convolution or a pooling is padding of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Dim, Editor, Effect, Match, Pattern, Refuse, Rewrite, constant_tensor, guards, op, scalar_of, var

from ..arguments import UNKNOWN, ints, normal_axes

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_BLOCK = 16  # channels from which the runtime convolves in its blocked layout
_TAPS, _DEPTHWISE_TAPS = 25, 121
_SHORT = 128  # places times taps up to which a padded column is no slower
_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp")


@dataclass(frozen=True)
class FoldPad(Rewrite):
    """Fold a constant Pad into the Conv, AveragePool or MaxPool behind it, where padding of its own is not slower.

    Measured under ONNX Runtime 1.32 (AVX-512), one thread, the Pad folded over the Pad kept: 3x3 kernels 1.1 to 1.4 times
    as fast, 5x5 1.0 to 1.1, depthwise up to 11x11 1.2 to 1.7; but 0.7 to 0.9 for 7x7, 0.6 for 31x31, 0.6 to 0.75 for 1x31
    over 64 places, and 0.3 to 0.8 for a column (Kx1 over an image one wide), which the runtime convolves as a row only
    where nothing is padded (unless it is short: 1.05). These are refused. Fewer than 16 input channels: 1.0 for 512x1 and 7x7.
    """

    name = "fold-pad"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})
    measured = True

    def patterns(self) -> Sequence[Pattern]:
        return (op(("Conv", "AveragePool", "MaxPool"), op("Pad", var("x"), ..., bind="pad"), ...),)

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fold_pad

        fold_pad.run(context)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, node, pad, x = editor.context, match.root, match["pad"], match["x"]
        guards.same_graph(node, pad)
        if guards.attribute(pad, "mode", "constant") != "constant":
            raise Refuse("the Pad does not pad with a constant")
        guards.only_consumer(pad.outputs[0], "the padded value", node)
        spatial = spatial_axes(node, context)
        begins, ends = padding(pad, spatial, context)
        guard_value(pad, node, x)
        auto_pad = guards.attribute(node, "auto_pad", "NOTSET")
        guards.require(auto_pad in ("NOTSET", "VALID"), "its own padding depends on the size of the padded value")
        own = guards.attribute(node, "pads", ()) if auto_pad == "NOTSET" else ()
        own = tuple(own) or (0,) * (2 * spatial)
        pads = [p + q for p, q in zip(own, (*begins, *ends))]
        attributes = {k: v for k, v in node.attributes.items() if k != "auto_pad"} | {"pads": ir.AttrInt64s("pads", pads)}
        if node.op_type == "Conv":
            guard_speed(node, pads, context)
        else:
            _guard_pooling(node, own, pads, context)
            if node.op_type == "AveragePool":
                attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        output = node.outputs[0]
        new = editor.node(node.op_type, [x, *node.inputs[1:]], attributes, name=node.name or None, like=output)
        editor.replace(output, new)


def spatial_axes(node: ir.Node, context: Context) -> int:
    """The number of spatial axes."""
    if node.op_type == "Conv":
        tensor = constant_tensor(node.inputs[1])
        rank = context.rank(node.inputs[1]) if tensor is None else len(tensor.shape)
        guards.require(rank is not None and rank > 2, "the rank of the weight is not known")
        return rank - 2  # type: ignore[operator]
    return len(guards.attribute(node, "kernel_shape", ()))


def padding(pad: ir.Node, spatial: int, context: Context) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is padded before and behind each spatial axis."""
    amounts = ints(context, pad, "pads", 1)
    if amounts is None or amounts == UNKNOWN:
        raise Refuse("how much is padded is not known")
    rank = spatial + 2
    axes: tuple[int, ...] | None = tuple(range(rank))
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        given = ints(context, pad, "axes", 3)
        if given is None or given == UNKNOWN:
            raise Refuse("the axes that are padded are not known")
        axes = normal_axes(given, rank)  # type: ignore[arg-type]
    count = len(amounts) // 2
    guards.require(axes is not None and len(axes) == count and len(set(axes)) == count, "the padding does not fit the rank")
    begins, ends = [0] * rank, [0] * rank
    for axis, begin, end in zip(axes, amounts[:count], amounts[count:]):  # type: ignore[arg-type]
        guards.require(axis < rank, "the padding does not fit the rank")
        begins[axis], ends[axis] = int(begin), int(end)
    guards.require(not any((*begins[:2], *ends[:2])), "it pads the batch or the channels")
    guards.require(min((*begins, *ends)) >= 0, "it cuts off, which padding of an operator cannot")
    return tuple(begins[2:]), tuple(ends[2:])


def guard_value(pad: ir.Node, node: ir.Node, x: ir.Value) -> None:
    """Refuse what the operator would not pad with: zero, or for a maximum what never is the largest."""
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    number = guards.attribute(pad, "value", 0.0) if value is None else scalar_of(value)
    guards.require(number is not None, "the value that it pads with is not known")
    if node.op_type != "MaxPool":
        guards.require(number == 0, f"it pads with {number:g}, and the operator would pad with zero")
    elif number != -np.inf:
        guards.require(number <= 0 and _not_negative(x), f"it pads with {number:g}, which may be the largest of a window")


def _not_negative(value: ir.Value) -> bool:
    """Whether no element of a value is below zero."""
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Clip":
        least = node.attributes.get("min")
        if least is not None:
            return not least.is_ref() and least.value >= 0
        bound = scalar_of(node.inputs[1]) if len(node.inputs) > 1 else None
        return bound is not None and bound >= 0
    return node.op_type in _NOT_NEGATIVE


def _guard_pooling(node: ir.Node, own: Sequence[int], pads: Sequence[int], context: Context) -> None:
    kernel = guards.attribute(node, "kernel_shape", ())
    guards.require(not guards.attribute(node, "ceil_mode", 0), "it rounds the size of its output up, past what is padded")
    guards.require(all(d == 1 for d in guards.attribute(node, "dilations", ())), "its windows are dilated")
    if node.op_type == "AveragePool":
        guards.require(context.opset(node) >= 7, "AveragePool leaves padding out of the average before opset 7")
        counted = bool(guards.attribute(node, "count_include_pad", 0))
        guards.require(counted or not any(own), "it leaves its own padding out of the average, and would count what is folded")
    else:
        guards.unused_outputs(node)  # places, which are counted in the padded value
    guards.require(all(p < k for p, k in zip(pads, (*kernel, *kernel))), "the padding is as large as the window, which no pooling takes")


def guard_speed(node: ir.Node, pads: Sequence[int], context: Context) -> None:
    """Refuse where the runtime convolves more slowly at the border than a Pad costs."""
    tensor = constant_tensor(node.inputs[1])
    dims = context.static_dims(node.inputs[1]) if tensor is None else tuple(tensor.shape.numpy())
    guards.require(dims is not None, "the kernel is not known, and padding slows large ones down")
    guard_kernel(dims, guards.attribute(node, "group", 1), pads, context.dims(node.outputs[0]))  # type: ignore[arg-type]


def guard_kernel(dims: Sequence[int], group: int, pads: Sequence[int], out: Sequence[Dim] | None) -> None:
    """Refuse a weight of shape `dims` and an output of shape `out`, where known, for which a border of its own is slower."""
    kernel = dims[2:]
    taps = math.prod(kernel)
    if group == 1 and dims[1] < _BLOCK:
        return
    if len(kernel) > 1 and kernel[-1] == 1 and any(pads) and taps > 1:
        wide = out is not None and isinstance(out[-1], int) and out[-1] > 1
        short = out is not None and isinstance(out[-2], int) and out[-2] * taps <= _SHORT
        guards.require(wide or short, "a padded column is convolved more slowly than it is padded")
    limit = _DEPTHWISE_TAPS if group > 1 and dims[1] == 1 else _TAPS
    guards.require(taps <= limit, f"a kernel of {taps} taps is slower at a border of its own than on a padded value")
