"""A normalization spelled out in ATen operators, read from the square root in its middle.

    d = x - mean(x);  d * rsqrt(mean(d^2) + epsilon), or d / sqrt(..), or with var(x) of correction 0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .spelled import ADD, DIV, MUL, POW, SUB, goes_to, is_number, made_by, number, operands, other

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext

ROOTS = ("aten.rsqrt.default", "aten.sqrt.default")
TYPES = ("float32", "float64", "float16", "bfloat16")
_MEAN = "aten.mean.dim"
_VARIANCES = ("aten.var.correction", "aten.var.dim")


def read(root: Node, context: AtenContext) -> tuple[Any, Node, tuple[int, ...], float, list[Node]] | None:
    """What is normalized, the last operator of it, the axes, epsilon, and the operators before the last; None: it is none."""
    plus = made_by(context.arguments(root)["self"], context, *ADD)
    found = statistics(plus, context) if plus is not None else None
    if found is None:
        return None
    x, deviation, axes, epsilon, nodes = found
    last = applied(root, deviation, context)
    dims = context.shape(x)
    if last is None or dims is None or context.shape(last) != dims:
        return None
    return x, last, axes, epsilon, [*nodes, root, plus]


def with_parameters(last: Node, nodes: list[Node], fits: Callable[[Any], bool], context: AtenContext) -> tuple[Node, Any, Any]:
    """The last operator with a scale and a bias behind, those two (None: none), and `nodes` with what lies between."""
    scale, bias = None, None
    following = goes_to(last, context, *MUL)
    if following is not None and fits(other(following, last, context)):
        nodes.append(last)
        scale, last = other(following, last, context), following
    following = goes_to(last, context, *ADD)
    if following is not None and fits(other(following, last, context)):
        nodes.append(last)
        bias, last = other(following, last, context), following
    return last, scale, bias


def per_channel(value: Any, x: Any, context: AtenContext) -> bool:
    """Whether a constant is one number for each channel, axis 1 of `x`, of which there is a known number."""
    dims, shape = context.shape(x) or (), context.static_shape(value)
    one = (*dims[1:2], *[1] * (len(dims) - 2))
    return shape in (one, (1, *one)) and context.is_constant(value) and context.dtype(value) == context.dtype(x)


def statistics(plus: Node, context: AtenContext) -> tuple[Any, Any, tuple[int, ...], float, list[Node]] | None:
    """What is normalized, what is divided, the axes, epsilon, and the nodes from the mean to the variance."""
    for average in operands(plus, context):
        epsilon = number(other(plus, average, context), context)
        if epsilon is None or not 0 < epsilon < math.inf:
            continue
        if made_by(average, context, *_VARIANCES) is not None:
            return _by_variance(average, epsilon, context)
        if made_by(average, context, _MEAN) is None:
            continue
        square = context.arguments(average)["self"]
        deviation = _squared(square, context)
        axes = _axes(average, context)
        if deviation is None or axes is None:
            continue
        minus = made_by(deviation, context, *SUB)
        x, mean = operands(minus, context) if minus is not None else (None, None)
        if made_by(mean, context, _MEAN) is not None and context.arguments(mean)["self"] is x and _axes(mean, context) == axes:
            return x, deviation, axes, epsilon, [average, square, deviation, mean]
    return None


def _by_variance(variance: Node, epsilon: float, context: AtenContext) -> tuple[Any, Any, tuple[int, ...], float, list[Node]] | None:
    given, axes = context.arguments(variance), _axes(variance, context)
    corrected = given["unbiased"] if "unbiased" in given else given["correction"] != 0
    if axes is None or corrected:
        return None
    x = given["self"]
    for user in x.users:
        if context.op(user) in SUB and operands(user, context)[0] is x:
            mean = operands(user, context)[1]
            if made_by(mean, context, _MEAN) is not None and context.arguments(mean)["self"] is x and _axes(mean, context) == axes:
                return x, user, axes, epsilon, [variance, user, mean]
    return None


def _squared(node: Any, context: AtenContext) -> Any:
    if made_by(node, context, *POW) is not None:
        x, power = operands(node, context)
        return x if is_number(power, context, 2.0) else None
    if made_by(node, context, *MUL) is not None:
        a, b = operands(node, context)
        return a if a is b else None
    return None


def _axes(node: Node, context: AtenContext) -> tuple[int, ...] | None:
    """The axes of a mean that keeps them, in order."""
    given = context.arguments(node)
    rank = context.rank(given["self"])
    if not given["dim"] or not given["keepdim"] or rank is None or given.get("dtype") is not None:
        return None
    return tuple(sorted(int(a) % rank for a in given["dim"]))


def applied(root: Node, deviation: Any, context: AtenContext) -> Node | None:
    """The product with the reciprocal of the root, or the quotient by it."""
    if context.op(root) == ROOTS[0]:
        node = goes_to(root, context, *MUL)
        return node if node is not None and other(node, root, context) is deviation else None
    node = goes_to(root, context, *DIV)
    return node if node is not None and operands(node, context) == (deviation, root) else None
