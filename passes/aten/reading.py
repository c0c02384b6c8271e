"""Reading arguments of ATen operators: numbers, constants with one value, what an operator is applied to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext

_LIMIT = 1 << 20  # bytes; no neutral constant is larger, and reading it would cost more than it gains


def applied_to(node: Node, context: AtenContext) -> Any:
    """The first argument of an operator."""
    return next(iter(context.arguments(node).values()), None)


def uniform(value: Any, context: AtenContext) -> Any:
    """The one number that a number, or every element of a constant, is (of floats: zeros of one sign), or None."""
    if isinstance(value, bool | int | float):
        return value
    if not context.is_constant(value) or not 0 < context.weight_bytes(value) <= _LIMIT:
        return None
    array = context.constant(value)
    if array is None or array.dtype.kind == "c":
        return None
    array = array.reshape(-1)
    first = array[0]
    if array.size > 1 and not (array == first).all():
        return None
    if array.size > 1 and first == 0 and array.dtype.kind not in "iub" and len(set(np.signbit(array).tolist())) != 1:
        return None
    return first.item()


def is_negative_zero(number: float) -> bool:
    """Whether a number that is zero is the negative one."""
    return isinstance(number, float) and bool(np.signbit(number))


def is_float(context: AtenContext, node: Any) -> bool:
    """Whether a value is of a real floating-point type."""
    return context.dtype(node) in ("float16", "bfloat16", "float32", "float64")
