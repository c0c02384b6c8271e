"""`fuse-conv-bn` on ATen graphs: a batch normalization goes into the weight and the bias of what stands before it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from graphopt.rewriting import Refuse

from .batchnorm import OPERATORS, output_of, read_bn, tensors_of
from .linear import OPERATORS as LINEAR
from .linear import read

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor


def run(context: AtenContext, max_growth_bytes: int) -> None:
    """Fold every one that can be."""
    from graphopt.aten import drive

    drive(context, OPERATORS, partial(_fuse, limit=max_growth_bytes))


def _fuse(bn: Node, editor: AtenEditor, limit: int) -> None:
    context = editor.context
    node = context.arguments(bn)["input"]
    if context.op(node) not in LINEAR:
        return
    y = output_of(bn, context)
    if y is None:
        return
    linear = read(node, context)
    context.only_user(node, "the output before it", bn)
    if linear.axis == -1 and context.rank(node) != 2:
        raise Refuse(f"of rank {context.rank(node)}, its channels are on axis 1, and those before it on the last")
    mul, shift = read_bn(bn, context, linear.channels)
    linear.guard_growth(context, limit)
    bias = linear.bias_array(context) * mul + shift
    needed = linear.bias is not None or bool(bias.any())
    weight = linear.weight_times_output(context, mul)
    new = linear.state(editor, like=node, weight=weight, bias=bias if needed else None, made_of=tensors_of(bn, context))
    editor.replace(y, new)
