"""`eliminate-noop-arithmetic` and `eliminate-zero-additions` on ATen graphs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from graphopt.rewriting import Refuse

from .reading import is_float, is_negative_zero, uniform

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_ADDITIONS = ("aten.add.Tensor", "aten.add.Scalar", "aten.sub.Tensor", "aten.sub.Scalar")
_FACTORS = ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar", "aten.pow.Tensor_Scalar")
_BOUNDS = {"aten.maximum.default": -math.inf, "aten.minimum.default": math.inf}
_COMMUTATIVE = frozenset({"aten.add.Tensor", "aten.mul.Tensor", *_BOUNDS})
_WHERE = ("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf")
_CHOICES = (*_WHERE, "aten.masked_fill.Scalar", "aten.masked_fill.Tensor")


def run(context: AtenContext) -> None:
    """Remove what changes no bit."""
    from graphopt.aten import drive

    drive(context, (*_ADDITIONS, *_FACTORS, *_BOUNDS), _rewrite)
    drive(context, _CHOICES, _choose)


def run_zeros(context: AtenContext) -> None:
    """Remove additions of a zero that only turn -0.0 into 0.0."""
    from graphopt.aten import drive

    drive(context, _ADDITIONS, _add_zero)


def _rewrite(node: Node, editor: AtenEditor) -> None:
    context, operator = editor.context, editor.context.op(node)
    for x, number in _operands(node, context):
        if operator in _BOUNDS:
            neutral = number == _BOUNDS[operator]
        elif operator in _FACTORS:
            neutral = number == 1
        else:
            neutral = number == 0
        if not neutral or not context.alike(node, x):
            continue
        if operator in _ADDITIONS and is_float(context, x):
            _guard_zero("sub" in operator, number)
        editor.replace(node, x)
        return


def _guard_zero(subtracted: bool, number: Any) -> None:
    if subtracted and is_negative_zero(number):
        raise Refuse("subtracting -0.0 turns -0.0 into 0.0")
    if not subtracted and not is_negative_zero(number):
        raise Refuse("adding 0.0 turns -0.0 into 0.0")


def _add_zero(node: Node, editor: AtenEditor) -> None:
    context = editor.context
    for x, number in _operands(node, context):
        if number == 0 and is_float(context, x) and context.alike(node, x):
            editor.replace(node, x)
            return


def _operands(node: Node, context: AtenContext) -> list[tuple[Node, Any]]:
    """Pairs of what an operator is applied to and the one number that the other operand is."""
    given = context.arguments(node)
    if given.get("alpha", 1) != 1 or (context.dtype(node) or "complex").startswith("complex"):
        return []
    a, b = list(given.values())[:2]
    pairs = [(a, b), (b, a)] if context.op(node) in _COMMUTATIVE else [(a, b)]
    found = []
    for x, other in pairs:
        number = uniform(other, context) if context.dtype(x) is not None else None
        if number is not None:
            found.append((x, number))
    return found


def _choose(node: Node, editor: AtenEditor) -> None:
    """A condition that is constant."""
    context, given = editor.context, list(editor.context.arguments(node).values())
    condition, a, b = given if context.op(node) in _WHERE else (given[1], given[2], given[0])
    number = uniform(condition, context)
    chosen = None if number is None else a if number else b
    if chosen is not None and context.alike(node, chosen):
        editor.replace(node, chosen)
