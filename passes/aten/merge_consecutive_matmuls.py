"""`merge-consecutive-matmuls` on ATen graphs: a product with one constant matrix and then another is one product."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from graphopt.rewriting import Refuse

from ..algebra import arithmetic
from ..algebra.consecutive import guard_work, matrix_product
from .linear import LINEAR, PRODUCTS, Linear, folded_name, read

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_OPERATORS = (LINEAR, *PRODUCTS)


def run(context: AtenContext, max_growth_bytes: int, max_work: int) -> None:
    """Merge all that one product computes for less."""
    from graphopt.aten import drive

    drive(context, _OPERATORS, partial(_merge, limit=max_growth_bytes, max_work=max_work))


def _merge(behind: Node, editor: AtenEditor, limit: int, max_work: int) -> None:
    context = editor.context
    given = context.arguments(behind)
    before = given.get("input", given.get("mat1", given.get("self")))
    if context.op(before) not in _OPERATORS:
        return
    weight = given.get("weight", given.get("mat2", given.get("other")))
    if not context.is_constant(weight):
        return  # a product of two computed values, as in attention
    first, second = read(before, context), read(behind, context)
    context.only_user(before, "the first product", behind)
    if first.inputs * second.channels >= first.channels * (first.inputs + second.channels):
        raise Refuse("one matrix would compute as much as the two do")
    guard_work(first.inputs * first.channels * second.channels, max_work)
    for linear in (first, second):
        linear.guard_growth(context, limit)
    dtype = np.asarray(context.required(second.weight, "the weight")).dtype
    product = matrix_product(_matrix(first, context), _matrix(second, context)) * (first.alpha * second.alpha)
    held = tuple(n for n in (second.weight, first.weight, second.bias, first.bias) if n is not None)
    # A linear layer takes its matrix transposed, and a bias at any rank.
    array = arithmetic.rounded(np.ascontiguousarray(product.T), dtype, "the weight")
    new_weight = editor.constant(array, folded_name(context.program.name_of(second.weight) or "weight"), made_of=held)
    arguments = [first.x, new_weight]
    if first.bias is not None or second.bias is not None:
        bias = second.bias_array(context)
        if first.bias is not None:
            bias = bias + second.answer_to_constant(context, first.bias_array(context))
        source = context.program.name_of(second.bias or first.bias)
        vector = arithmetic.rounded(bias, dtype, "the bias")
        arguments.append(editor.constant(vector, folded_name(source or "bias"), made_of=held))
    editor.replace(behind, editor.call("aten.linear.default", arguments, like=behind))


def _matrix(linear: Linear, context: AtenContext) -> np.ndarray:
    """The matrix of a product as [inputs, outputs]."""
    array = linear.weight_array(context)
    return array.T if linear.kind == "linear" else array
