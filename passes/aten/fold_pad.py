"""`fold-pad` on ATen graphs: a padding with zeros before a convolution or a pooling is padding of theirs.

Measured in eager torch 2.13, one thread, the padding folded over the padding kept: 1.1 to 1.2 times as fast for 3x3 kernels,
1.0 for 7x7 of 3 channels; but 0.04 for 31x31 depthwise, 0.6 for 1x31 and 0.7 for a column of 9x1. The same kernels are
turned down as on ONNX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.rewriting import Refuse

from ..algebra.fold_pad import guard_kernel
from .linear import CONVOLUTION, CONVS
from .window import Window, per_axis, window_of

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

PADS = ("aten.constant_pad_nd.default", "aten.pad.default")
_AVERAGES = ("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
_MAXIMA = ("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
_NOT_NEGATIVE = ("relu", "sigmoid", "hardsigmoid", "softmax", "abs", "exp", "relu6")


def run(context: AtenContext) -> None:
    """Fold every one that can be."""
    from graphopt.aten import drive

    drive(context, (*CONVS, CONVOLUTION, *_AVERAGES, *_MAXIMA), _fold)


def _fold(node: Node, editor: AtenEditor) -> None:
    context = editor.context
    given = context.arguments(node)
    name = "input" if "input" in given else "self"
    pad = given[name]
    if context.op(pad) not in PADS:
        return
    padding = context.arguments(pad)
    x, amounts, value = padding["self"], padding["pad"], padding.get("value")
    context.require(padding.get("mode", "constant") == "constant", "it does not pad with a constant")
    context.only_user(pad, "the padded value", node)
    conv = context.op(node) in (*CONVS, CONVOLUTION)
    context.require(not given.get("transposed", False), "a transposed convolution takes off what it pads")
    rank = len(context.shape(given["weight"]) or ()) - 2 if conv else int(context.op(node)[len("aten.???_pool")])
    context.require(context.rank(x) == rank + 2, "the input has no batch axis")
    added = _symmetric(amounts, rank)
    _guard_value(value, node, x, context)
    kernel = tuple(context.static_shape(given["weight"]) or ())[2:] if conv else per_axis(given["kernel_size"], rank)
    context.require(len(kernel) == rank, "the size of the kernel is not known")
    window = window_of(given, kernel)
    total = [p + q for p, q in zip(window.begins, added)]
    if conv:
        guard_kernel(context.static_shape(given["weight"]) or (), given["groups"], total, context.shape(node))
        context.require(window.begins == window.ends, "its own padding differs from side to side")
        if context.op(node).endswith(".padding"):
            given |= {"stride": list(window.stride), "dilation": list(window.dilation)}
    else:
        _guard_pooling(given, window, total)
        if "count_include_pad" in given:
            given["count_include_pad"] = True
    given[name], given["padding"] = x, total
    operator = context.op(node).removesuffix(".padding") + ".default" if context.op(node).endswith(".padding") else context.op(node)
    editor.replace(node, editor.call(operator, list(given.values()), like=node))


def _symmetric(amounts: Any, rank: int) -> tuple[int, ...]:
    """What is padded on either side of each spatial axis, the first axis first."""
    if any(not isinstance(a, int) for a in amounts) or len(amounts) % 2:
        raise Refuse("how much is padded is not known")
    pairs = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)][::-1]  # torch begins with the last axis
    outer, spatial = pairs[: max(0, len(pairs) - rank)], pairs[max(0, len(pairs) - rank) :]
    if any(a for pair in outer for a in pair):
        raise Refuse("it pads the batch or the channels")
    if any(begin != end for begin, end in spatial):
        raise Refuse("it pads one side more than the other, which padding of an operator cannot")
    if any(begin < 0 for begin, _ in spatial):
        raise Refuse("it cuts off, which padding of an operator cannot")
    return (0,) * (rank - len(spatial)) + tuple(begin for begin, _ in spatial)


def _guard_value(value: Any, node: Node, x: Node, context: AtenContext) -> None:
    """Refuse what the operator would not pad with: zero, or for a maximum what never is the largest."""
    number = 0.0 if value is None else value
    context.require(isinstance(number, int | float), "the value that it pads with is not known")
    if context.op(node) not in _MAXIMA:
        context.require(number == 0, f"it pads with {number:g}, and the operator would pad with zero")
    elif number != -np.inf:
        positive = context.op(x).removeprefix("aten.").partition(".")[0] in _NOT_NEGATIVE
        context.require(number <= 0 and positive, f"it pads with {number:g}, which may be the largest of a window")


def _guard_pooling(given: dict[str, Any], window: Window, total: list[int]) -> None:
    if given["ceil_mode"]:
        raise Refuse("it rounds the size of its output up, past what is padded")
    if any(d != 1 for d in window.dilation):
        raise Refuse("its windows are dilated")
    if not given.get("count_include_pad", True) and window.padded:
        raise Refuse("it leaves its own padding out of the average, and would count what is folded")
    if any(2 * p > k for p, k in zip(total, window.kernel)):
        raise Refuse("the padding is more than half of the window, which no pooling takes")
