"""`fold-affine` on ATen graphs: a scale or shift per channel beside a linear operator goes into its weight and bias."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..algebra.linear import check_per_channel
from .affine import STEPS, Step, guard_runtime_fusion, read_step
from .batchnorm import norm_behind, output_of, read_bn, tensors_of
from .linear import OPERATORS as LINEAR
from .linear import is_linear, read

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor


def run(context: AtenContext, max_growth_bytes: int) -> None:
    """Fold behind, then before, the linear operators; a step between two goes into the first."""
    from graphopt.aten import drive

    drive(context, STEPS, partial(_after, limit=max_growth_bytes))
    drive(context, LINEAR, partial(_before, limit=max_growth_bytes))


def _after(root: Node, editor: AtenEditor, limit: int) -> None:
    context = editor.context
    step = read_step(root, context)
    if step is None or not is_linear(step.x, context):
        return
    node = step.x
    linear = read(node, context)
    context.only_user(node, "the output before it", root)
    check_per_channel(step.dims(context), context.rank(node), linear.axis, linear.channels, "the constant")
    mul, shift = per_channel(step, linear.channels, context)
    bias = linear.bias_array(context) * mul + shift
    weight = None
    if (mul != 1).any():
        linear.guard_growth(context, limit)
        weight = linear.weight_times_output(context, mul)
    needed = linear.bias is not None or bool(bias.any())
    editor.replace(root, linear.state(editor, like=node, weight=weight, bias=bias if needed else None, made_of=step.tensors()))


def _before(node: Node, editor: AtenEditor, limit: int) -> None:
    context = editor.context
    given = context.arguments(node)
    value = given.get("input", given.get("mat1", given.get("self")))
    step, norm = read_step(value, context), norm_behind(value, context)
    if (step is None and norm is None) or not is_linear(node, context):
        return
    linear = read(node, context)
    context.only_user(value, "the scaled input", node)
    axis = 1 if linear.kind in ("conv", "transposed") else -1
    if step is not None:
        x, tensors = step.x, step.tensors()
        check_per_channel(step.dims(context), context.rank(x), axis, linear.inputs, "the constant")
        context.require(context.shape(x) == context.shape(value), "the constant widens the input")
        guard_runtime_fusion(x, context)
        mul, shift = per_channel(step, linear.inputs, context)
    else:
        x, tensors = context.arguments(norm)["input"], tensors_of(norm, context)
        context.require(output_of(norm, context) is value, "its results are passed on together")
        context.require(axis == 1 or context.rank(x) == 2, "its channels are not on the axis that the product sums over")
        mul, shift = read_bn(norm, context, linear.inputs)
    bias: Node | np.ndarray | None = linear.bias
    if shift.any():
        bias = linear.bias_array(context) + linear.answer_to_constant(context, shift)
    elif linear.beta != 1:
        bias = linear.bias_array(context)
    weight = None
    if (mul != 1).any():
        linear.guard_growth(context, limit)
        weight = linear.weight_times_input(context, mul)
    if weight is None and not shift.any():
        return  # a multiplication by one, an addition of zero: not for weights
    editor.replace(node, linear.state(editor, like=node, weight=weight, bias=bias, x=x, made_of=tensors))


def per_channel(step: Step, channels: int, context: AtenContext) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add` of a step, one value a channel."""
    mul, shift = (np.broadcast_to(a.reshape(-1), (channels,)) for a in step.affine(context))
    return mul, shift
