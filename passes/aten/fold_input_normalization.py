"""`fold-input-normalization` on ATen graphs: (x - mean) / std of an input goes into the first convolution."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from graphopt.rewriting import Refuse

from ..algebra.fold_input_normalization import least_shift
from ..algebra.linear import check_per_channel
from .affine import Step
from .fold_affine import per_channel
from .linear import CONVOLUTION, CONVS, Linear, folded_name, read
from .merge_affine_chains import chain_to

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_ON_THE_WAY = ("aten._to_copy.default", "aten.to.dtype", "aten.permute.default", "aten.transpose.int", "aten.unsqueeze.default",
               "aten.view.default", "aten.reshape.default", "aten.squeeze.dim", "aten.clone.default")  # fmt: skip
_FARTHEST = 16  # operators between an input and its convolution


def run(context: AtenContext, max_growth_bytes: int) -> None:
    """Fold every one that can be."""
    from graphopt.aten import drive

    drive(context, (*CONVS, CONVOLUTION), partial(_fold, limit=max_growth_bytes))


def _fold(node: Node, editor: AtenEditor, limit: int) -> None:
    context = editor.context
    value = context.arguments(node)["input"]
    steps = chain_to(value, context)
    if not steps or not _from_input(steps[0].x, context):
        return
    linear = read(node, context)
    if linear.kind == "transposed":
        return
    context.only_user(value, "the normalized input", node)
    mul, shift = _composed(steps, linear, context)
    keeps_add = bool(shift.any()) and not linear.unpadded(context)
    if keeps_add and len(steps) == 1:
        raise Refuse("the convolution pads with zeros, so a shift before it does not reach the border alike")
    linear.guard_growth(context, limit)
    x, tensors = steps[0].x, tuple(t for step in steps for t in step.tensors())
    bias: Node | np.ndarray | None = linear.bias
    if keeps_add:
        context.require(bool((mul != 0).all()), "it multiplies by zero")
        add = least_shift(shift / mul, len(linear.shape), np.asarray(context.required(linear.weight, "the weight")).dtype)
        name = folded_name(context.program.name_of(tensors[0]) or "shift") if tensors else "shift"
        x = editor.call("aten.add.Tensor", [x, editor.constant(add, name, made_of=tensors) if add.ndim else float(add)], like=x)
    elif shift.any():
        bias = linear.bias_array(context) + linear.answer_to_constant(context, shift)
    weight = linear.weight_times_input(context, mul) if (mul != 1).any() else None
    editor.replace(node, linear.state(editor, like=node, weight=weight, bias=bias, x=x, made_of=tensors))


def _from_input(value: Node, context: AtenContext) -> bool:
    """Whether a value is an input, but for its type and layout."""
    for _ in range(_FARTHEST):
        if context.op(value) not in _ON_THE_WAY:
            break
        value = value.args[0]
    return context.is_input(value)


def _composed(steps: list[Step], linear: Linear, context: AtenContext) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add`, one value an input channel, with normalized = x * mul + add."""
    mul, shift = np.ones(linear.inputs), np.zeros(linear.inputs)
    for step in steps:
        check_per_channel(step.dims(context), len(linear.shape), 1, linear.inputs, "the constant")
        context.require(context.shape(step.x) == context.shape(step.node), "the constant widens the input")
        factor, term = per_channel(step, linear.inputs, context)
        mul, shift = mul * factor, shift * factor + term
    return mul, shift
