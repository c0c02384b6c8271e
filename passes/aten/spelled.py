"""Reading a function that is spelled out in ATen operators: what stands behind a value, and where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.rewriting import Refuse

from .reading import uniform

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext

ADD = ("aten.add.Tensor", "aten.add.Scalar")
SUB = ("aten.sub.Tensor", "aten.sub.Scalar")
MUL = ("aten.mul.Tensor", "aten.mul.Scalar")
DIV = ("aten.div.Tensor", "aten.div.Scalar")
POW = ("aten.pow.Tensor_Scalar",)


def made_by(value: Any, context: AtenContext, *operators: str) -> Node | None:
    """The operator of one of these names that computes a value, or None."""
    return value if context.op(value) in operators else None


def goes_to(value: Node, context: AtenContext, *operators: str) -> Node | None:
    """The one operator that takes a value, which is no output, where it is one of these."""
    if len(value.users) != 1 or context.is_output(value):
        return None
    (user,) = value.users
    return user if context.op(user) in operators else None


def operands(node: Node, context: AtenContext) -> tuple[Any, Any]:
    """The two operands of a binary operator; (None, None) where the second is scaled before it is added."""
    given = context.arguments(node)
    a, b = list(given.values())[:2]
    return (a, b) if given.get("alpha", 1) == 1 else (None, None)


def other(node: Node, x: Any, context: AtenContext) -> Any:
    """The operand beside another; `x` itself where it is both, None where it is neither."""
    a, b = operands(node, context)
    return b if a is x else a if b is x else None


def number(value: Any, context: AtenContext) -> float | None:
    """A number, or the one element of a constant, or None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    shape = context.static_shape(value)
    if shape is None or any(d != 1 for d in shape) or context.dtype(value) == "bool":
        return None
    found = uniform(value, context)
    return None if found is None else float(found)


def is_number(value: Any, context: AtenContext, *wanted: float) -> bool:
    """Whether a value is one of these numbers, exactly or as float32 rounds it; a tensor, as its own type does."""
    found = number(value, context)
    if found is None:
        return False
    array = context.constant(value) if not isinstance(value, int | float) else None
    kinds = [np.dtype(np.float64), np.dtype(np.float32)] if array is None else [array.dtype]
    return any(found == float(np.asarray(w, np.float64).astype(kind)) for w in wanted for kind in kinds)


def scaled_by(node: Any, x: Any, context: AtenContext) -> float | None:
    """The factor that a product or a quotient of `x` and a number multiplies it by, or None."""
    if made_by(node, context, *MUL) is not None:
        return number(other(node, x, context), context)
    if made_by(node, context, *DIV) is not None and operands(node, context)[0] is x:
        divisor = number(operands(node, context)[1], context)
        return None if not divisor else 1 / divisor
    return None


def claim(nodes: Sequence[Node], last: Node, context: AtenContext) -> None:
    """Refuse where something else needs what is computed on the way to `last`."""
    members = frozenset(nodes) | {last}
    for node in members:
        if node is last:
            continue
        if context.is_output(node):
            raise Refuse(f"{node.name!r}, inside it, is also an output of the program")
        if any(user not in members for user in node.users):
            raise Refuse(f"{node.name!r}, inside it, has other users")
