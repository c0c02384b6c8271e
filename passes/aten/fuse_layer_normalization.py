"""`fuse-layer-normalization` on ATen graphs, read from the square root in its middle.

    d = x - mean(x);  d * rsqrt(mean(d^2) + epsilon) * scale + bias, or d / sqrt(..), or with var(x) of correction 0

RMS normalizations stay spelled out: torch 2.13 computes its operator on the CPU in 0.9 to 1.9 times the time of the parts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from graphopt.rewriting import Refuse

from .spelled import ADD, DIV, MUL, POW, SUB, claim, goes_to, is_number, made_by, number, operands, other

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_ROOTS = ("aten.rsqrt.default", "aten.sqrt.default")
_MEAN = "aten.mean.dim"
_VARIANCES = ("aten.var.correction", "aten.var.dim")
_TYPES = ("float32", "float64", "float16", "bfloat16")


def run(context: AtenContext) -> None:
    """Write them as the operator layer_norm."""
    from graphopt.aten import drive

    drive(context, _ROOTS, _rewrite)


def _rewrite(root: Node, editor: AtenEditor) -> None:
    context = editor.context
    plus = made_by(context.arguments(root)["self"], context, *ADD)
    found = _statistics(plus, context) if plus is not None else None
    if found is None:
        return
    x, deviation, axes, epsilon, nodes = found
    last = _applied(root, deviation, context)
    dims = context.shape(x)
    if last is None or dims is None or context.shape(last) != dims:
        return
    nodes += [root, plus]
    rank = len(dims)
    if axes != tuple(range(rank - len(axes), rank)):
        return
    sizes = dims[rank - len(axes):]
    if any(not isinstance(d, int) for d in sizes):
        raise Refuse("the size of the normalized axes is not known")
    context.require(context.dtype(x) in _TYPES and context.dtype(last) == context.dtype(x), "its types are not all one")
    scale, bias = None, None
    following = goes_to(last, context, *MUL)
    if following is not None and _fits(other(following, last, context), sizes, x, context):
        nodes.append(last)
        scale, last = other(following, last, context), following
    following = goes_to(last, context, *ADD)
    if following is not None and _fits(other(following, last, context), sizes, x, context):
        nodes.append(last)
        bias, last = other(following, last, context), following
    claim(nodes, last, context)
    editor.root = last  # scale and bias may be computed after the square root
    editor.replace(last, editor.call("aten.layer_norm.default", [x, list(sizes), scale, bias, epsilon]))


def _statistics(plus: Node, context: AtenContext) -> tuple[Any, Any, tuple[int, ...], float, list[Node]] | None:
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


def _applied(root: Node, deviation: Any, context: AtenContext) -> Node | None:
    """The product with the reciprocal of the root, or the quotient by it."""
    if context.op(root) == _ROOTS[0]:
        node = goes_to(root, context, *MUL)
        return node if node is not None and other(node, root, context) is deviation else None
    node = goes_to(root, context, *DIV)
    return node if node is not None and operands(node, context) == (deviation, root) else None


def _fits(value: Any, sizes: tuple[Any, ...], x: Any, context: AtenContext) -> bool:
    return context.shape(value) == sizes and context.dtype(value) == context.dtype(x)
