"""`fuse-scaled-dot-product-attention` on ATen graphs: softmax(scale * Q K^T + mask) V becomes `scaled_dot_product_attention`.

Of a row that a mask hides throughout with -inf, a softmax makes NaN and the operator 0; where a mask is finite, both make
the mean of all values. So a mask is taken only where it is known that -inf hides no whole row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.rewriting import Refuse

from .permutations import PERMUTATIONS
from .reading import applied_to
from .spelled import ADD, DIV, MUL, SUB, claim, made_by, number, operands, other, scaled_by

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_PRODUCTS = ("aten.matmul.default", "aten.bmm.default")
_SOFTMAX = ("aten.softmax.int", "aten._softmax.default")
_FILL = "aten.masked_fill.Scalar"
_NOT = ("aten.logical_not.default", "aten.bitwise_not.default")
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_VIEWS = ("aten.unsqueeze.default", "aten.view.default", "aten.expand.default", "aten.alias.default", "aten.clone.default")
_SLICE = "aten.slice.Tensor"
_REMOVES = -1e30  # a number at least this low, added to a score or in its place, comes to the same after rounding
_LARGEST = 1 << 26  # bytes of a constant mask that is looked at
_STEPS = 8


@dataclass
class _Scores:
    """What stands between the first product and the softmax."""

    product: Node | None = None
    scale: float = 1.0
    bias: Any = None
    condition: Any = None  # where it is true, `fill` stands in the place of the score
    fill: float = -math.inf
    nodes: list[Node] = field(default_factory=list)


def run(context: AtenContext) -> None:
    """Fuse every one."""
    from graphopt.aten import drive

    drive(context, _PRODUCTS, _rewrite)


def _rewrite(product: Node, editor: AtenEditor) -> None:
    context = editor.context
    probabilities, value = context.arguments(product).values()
    softmax = made_by(probabilities, context, *_SOFTMAX)
    if softmax is None:
        return
    given = context.arguments(softmax)
    if given["dim"] not in (-1, (context.rank(softmax) or 0) - 1):
        raise Refuse("the softmax does not run along the keys")
    if context.dtype(softmax) != context.dtype(given.get("self")):
        raise Refuse("the softmax is of another type than the scores")
    scores = _read(given["self"], context)
    first = scores.product
    query, turned = context.arguments(first).values()
    query, factor = _unscaled(query, context)
    turned, second = _unscaled(turned, context)
    scale = scores.scale * factor * second
    dims = [context.shape(n) for n in (query, turned, value)]
    context.require(all(d is not None and len(d) == 4 for d in dims), "batch and heads are made one, or there are none")
    q, k, v = dims
    context.require(q[:2] == k[:2] == v[:2], "batch and heads of query, key and value are not known to be equal")
    context.require(k[2] == q[3] == v[3] and k[3] == v[2], "heads of query, key and value differ in size")
    context.require(isinstance(q[3], int), "the size of heads is not known")
    context.require(all(context.dtype(n) == context.dtype(product) for n in (query, turned, value)), "it is of several types")
    context.require(context.dtype(product) in _FLOATS, f"it is of {context.dtype(product)}")
    context.require(math.isfinite(scale) and scale > 0, "its scale is not a positive number")
    context.require(context.shape(given["self"]) == context.shape(first), "the mask changes the shape of the scores")
    mask, causal = _mask(scores, context, (q[2], k[3]))
    claim([softmax, first, *scores.nodes], product, context)
    key = editor.call("aten.transpose.int", [turned, -2, -1])
    arguments = [query, key, value, mask, 0.0, causal]
    editor.replace(product, editor.call("aten.scaled_dot_product_attention.default", arguments, {"scale": scale}))


def _read(value: Any, context: AtenContext) -> _Scores:
    """From the softmax back to the first product."""
    found = _Scores()
    for _ in range(_STEPS):
        masked = found.bias is not None or found.condition is not None
        if made_by(value, context, *_PRODUCTS) is not None:
            found.product = value
            return found
        if made_by(value, context, *MUL, *DIV) is not None:
            x = next((n for n in operands(value, context) if scaled_by(value, n, context) is not None), None)
            if x is None:
                break
            found.scale *= scaled_by(value, x, context)
        elif made_by(value, context, *ADD, *SUB) is not None:
            a, b = operands(value, context)
            x, mask = (a, b) if _is_scores(a, context) else (b, a)
            if made_by(value, context, *SUB) is not None or not _is_scores(x, context):
                break
            _only_mask(masked, found.scale)
            found.bias = mask
        elif context.op(value) == _FILL:
            x, condition, fill = context.arguments(value).values()
            _only_mask(masked, found.scale)
            found.condition, found.fill = condition, float(fill)
        else:
            break
        found.nodes.append(value)
        value = x
    raise Refuse("its scores are not those of a product, scaled and masked")


def _is_scores(value: Any, context: AtenContext) -> bool:
    """Whether a value leads back to a product by scales alone."""
    for _ in range(_STEPS):
        if made_by(value, context, *_PRODUCTS) is not None:
            return True
        if made_by(value, context, *MUL, *DIV, _FILL) is None:
            return False
        value = applied_to(value, context)
    return False


def _only_mask(masked: bool, scale: float) -> None:
    if masked:
        raise Refuse("it has more than one mask")
    if scale != 1.0:
        raise Refuse("it is scaled after it is masked")


def _unscaled(value: Any, context: AtenContext) -> tuple[Any, float]:
    """What is multiplied by a number before the product, and the number."""
    if made_by(value, context, *MUL, *DIV) is not None and len(value.users) == 1 and not context.is_output(value):
        for x in operands(value, context):
            factor = scaled_by(value, x, context)
            if factor and math.isfinite(factor) and context.alike(x, value):
                return x, factor
    return value, 1.0


def _mask(scores: _Scores, context: AtenContext, lengths: tuple[Any, Any]) -> tuple[Any, bool]:
    """The mask that the operator takes, and whether it is causal instead."""
    if scores.condition is not None:
        if scores.fill > _REMOVES:
            raise Refuse(f"scores are replaced by {scores.fill}, which does not remove them")
        kept = _keeps(scores.condition, context)
        if kept is None:
            raise Refuse("it is not known that no row is hidden throughout, of which the operator makes 0")
        return (None, True) if lengths[0] == lengths[1] else (kept, False)
    if scores.bias is None:
        return None, False
    if context.dtype(scores.bias) != context.dtype(scores.product) or context.shape(scores.bias) is None:
        raise Refuse("its mask is of another type than the scores")
    array = _triangle(scores.bias, context)
    if array is not None and _is_triangle(array <= _REMOVES) and not array[array > _REMOVES].any() and lengths[0] == lengths[1]:
        return None, True
    if not _is_finite(scores.bias, context):
        raise Refuse("its mask may hide a row throughout by -inf, of which the operator makes 0")
    context.require((context.rank(scores.bias) or 0) >= 2, "its mask has less than two axes")
    return scores.bias, False


def _keeps(condition: Any, context: AtenContext) -> Any:
    """The boolean mask that is true where a score stays, where it is a causal one; else None."""
    plain = applied_to(condition, context) if context.op(condition) in _NOT else None
    if plain is not None:
        array = _triangle(plain, context)
        return plain if array is not None and array.dtype == np.bool_ and _is_triangle(~array) else None
    return None


def _triangle(value: Any, context: AtenContext) -> np.ndarray | None:
    """The constant of which a mask is the upper left corner, as large as the scores; None for another mask."""
    ends: list[Any] = []
    for _ in range(_STEPS):
        if context.is_constant(value):
            break
        if context.op(value) == _SLICE:
            given = context.arguments(value)
            if given["start"] not in (None, 0) or given["step"] != 1:
                return None
            ends.append(given["end"])
        elif context.op(value) not in _VIEWS or context.op(value) == "aten.expand.default":
            return None
        value = applied_to(value, context)
    if not context.is_constant(value) or context.weight_bytes(value) > _LARGEST:
        return None
    array = context.constant(value)
    if array is None or array.ndim < 2 or any(d != 1 for d in array.shape[:-2]):
        return None
    return array.reshape(array.shape[-2:])


def _is_triangle(hidden: np.ndarray) -> bool:
    """Whether what is hidden is all above the diagonal."""
    rows, columns = hidden.shape
    return rows <= columns and bool((hidden == ~np.tri(rows, columns, dtype=bool)).all())


def _is_finite(value: Any, context: AtenContext) -> bool:
    """Whether a mask holds no infinity: a finite constant, a choice between finite numbers, or a flag times one."""
    for _ in range(_STEPS):
        operator = context.op(value)
        if context.is_constant(value):
            array = context.constant(value) if context.weight_bytes(value) <= _LARGEST else None
            return array is not None and bool(np.isfinite(array).all())
        if operator in ("aten.where.self", "aten.where.Scalar", "aten.where.ScalarOther", "aten.where.ScalarSelf"):
            numbers = [number(v, context) for v in list(context.arguments(value).values())[1:]]
            return all(n is not None and math.isfinite(n) for n in numbers)
        if operator in MUL:
            pairs = [(x, number(other(value, x, context), context)) for x in operands(value, context)]
            return any(n is not None and math.isfinite(n) and _is_flag(x, context) for x, n in pairs)
        if operator not in (*_VIEWS, _SLICE, *PERMUTATIONS):
            return False
        value = applied_to(value, context)
    return False


def _is_flag(value: Any, context: AtenContext) -> bool:
    """Whether a value is made of whole numbers or truth values: those that models are given are 0 and 1."""
    for _ in range(_STEPS):
        if context.dtype(value) is not None and not context.dtype(value).startswith(("float", "bfloat", "complex")):
            return True
        operator = context.op(value)
        if operator not in ("aten.rsub.Scalar", "aten._to_copy.default", *ADD, *SUB, *_VIEWS, _SLICE):
            return False
        if operator in ("aten.rsub.Scalar", *ADD, *SUB) and number(list(context.arguments(value).values())[1], context) not in (1.0, -1.0):
            return False
        value = applied_to(value, context)
    return False
