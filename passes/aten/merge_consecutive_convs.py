"""`merge-consecutive-convs` on ATen graphs: a 1x1 convolution beside another one is part of it."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from graphopt.rewriting import Refuse

from ..algebra import arithmetic
from ..algebra.consecutive import conv_product, guard_work
from .linear import CONVOLUTION, CONVS, call_conv, folded_name, read

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor


def run(context: AtenContext, max_growth_bytes: int, max_work: int) -> None:
    """Merge all that one convolution computes for less."""
    from graphopt.aten import drive

    drive(context, (*CONVS, CONVOLUTION), partial(_merge, limit=max_growth_bytes, max_work=max_work))


def _merge(behind: Node, editor: AtenEditor, limit: int, max_work: int) -> None:
    context = editor.context
    before = context.arguments(behind)["input"]
    if context.op(before) not in (*CONVS, CONVOLUTION):
        return
    first, second = read(before, context), read(behind, context)
    if "transposed" in (first.kind, second.kind):
        return
    windows = first.window(context), second.window(context)
    if not any(w.pointwise for w in windows):
        return
    context.only_user(before, "the output of the first", behind)
    context.require(first.group == 1 and second.group == 1, "one of the convolutions is grouped")
    spatial = second if windows[0].pointwise else first
    window = windows[1] if windows[0].pointwise else windows[0]
    taps = math.prod(window.kernel)
    places = math.prod(windows[1].stride)  # of the first's output, for one of the second's
    if taps * first.inputs * second.channels >= places * math.prod(first.shape) + math.prod(second.shape):
        raise Refuse("one convolution would compute as much as the two do")
    context.require(window.begins == window.ends, "it pads one side more than the other")
    guard_work(taps * first.inputs * first.channels * second.channels, max_work)
    for linear in (first, second):
        linear.guard_growth(context, limit)
    bias = None
    if first.bias is not None and (shift := first.bias_array(context)).any():
        # A 1x1 convolution has no border; another must not pad, for padding is of zeros and not of the bias.
        bias = second.bias_array(context) + second.answer_to_constant(context, shift)
    elif first.bias is not None or second.bias is not None:
        bias = second.bias_array(context)
    arrays = [linear.weight_array(context) for linear in (first, second)]
    dtype = np.asarray(arrays[0]).dtype
    weight = arithmetic.rounded(conv_product(*arrays), dtype, "the weight")
    held = [n for n in (second.weight, first.weight, second.bias, first.bias) if n is not None]
    new_weight = editor.constant(weight, folded_name(context.program.name_of(second.weight) or "weight"), made_of=held)
    new_bias = None
    if bias is not None:
        source = context.program.name_of(second.bias or first.bias)
        new_bias = editor.constant(arithmetic.rounded(bias, dtype, "the bias"), folded_name(source or "bias"), made_of=held)
    general = CONVOLUTION in (context.op(before), context.op(spatial.node))
    editor.replace(behind, call_conv(editor, first.x, new_weight, new_bias, window, 1, general=general, like=behind))
