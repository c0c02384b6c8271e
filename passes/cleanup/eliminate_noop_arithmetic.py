"""Arithmetic with a neutral constant: what it does to every bit is nothing.

Constants are compared exactly, signs of zero included: `x + 0.0` turns -0.0 into 0.0 and is left to
`eliminate-zero-additions`; `x + -0.0` and `x - 0.0` change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Editor, Match, Pattern, Refuse, Rewrite, const, constant_tensor, op, var
from graphopt.rewriting.guards import FLOATS, require

from ..arguments import element_type, keeps_shape

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_LIMIT = 1 << 20  # bytes; no neutral constant is larger, and reading it would cost more than it gains
_BROADCASTING = 7  # the opset from which binary operators broadcast as numpy does


def uniform(value: ir.Value) -> np.generic | None:
    """The one value that all elements of a constant have, bit for bit (of floats: zeros of one sign), or None."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING or not 0 < tensor.nbytes <= _LIMIT:
        return None
    array = tensor.numpy().reshape(-1)
    first = array[0]
    if array.size > 1 and not (array == first).all():
        return None
    if first == 0 and tensor.dtype.is_floating_point() and len(set(np.signbit(array).tolist())) != 1:
        return None
    return first


def is_scalar_of(value: ir.Value, number: float) -> np.generic | None:
    """The element of a uniform constant where it equals `number`."""
    found = uniform(value)
    return found if found is not None and found == number else None


@dataclass(frozen=True)
class EliminateNoopArithmetic(Rewrite):
    """Remove x*1, x/1, x-0, x**1, and-true, or-false, max with -inf, Where with a constant condition, and Sum, Min, Max, Mean of one."""

    name = "eliminate-noop-arithmetic"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_noop_arithmetic

        eliminate_noop_arithmetic.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (
            op(("Mul", "Add", "And", "Or", "Xor", "Max", "Min"), var("x"), const("c"), commutative=True),
            op(("Sub", "Div", "Pow"), var("x"), const("c")),
            op("Where", const("condition"), var("a"), var("b"), bind="where"),
            op(("Sum", "Min", "Max", "Mean"), var("x"), bind="single"),
            op("Clip", var("x"), bind="clip"),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        node = match.root
        if editor.context.opset(node) < _BROADCASTING:
            return
        if "where" in match:
            self._where(match, editor)
        elif "clip" in match:
            self._clip(match, editor)
        elif "single" in match:
            editor.replace(node.outputs[0], match["x"])
        elif self._neutral(match, editor):
            x, c = match["x"], match["c"]
            dims = editor.context.dims(c)
            require(dims == () or keeps_shape(editor.context.dims(x), dims), "the constant's shape may change the shape of the result")
            editor.replace(node.outputs[0], x)

    def _neutral(self, match: Match, editor: Editor) -> bool:
        kind, c = match.root.op_type, match["c"]
        dtype = constant_tensor(c).dtype
        number = uniform(c)
        if number is None or dtype.name.startswith("COMPLEX"):
            return False
        if kind in ("Mul", "Div"):
            return bool(number == 1)
        if kind == "Pow":
            if number != 1:
                return False
            base = element_type(editor.context, match["x"])
            # An integer base is raised in floating point, which loses the low bits of a large one.
            require(base in FLOATS, "the base is not known to be a floating-point number")
            return True
        if kind in ("Max", "Min"):
            return bool(number == (-np.inf if kind == "Max" else np.inf))
        if kind in ("And", "Or", "Xor"):
            return bool(number) == (kind == "And")
        if number != 0:
            return False
        if kind == "Add" and dtype.is_floating_point() and not np.signbit(number):
            raise Refuse("adding 0.0 turns -0.0 into 0.0")
        if kind == "Sub" and dtype.is_floating_point() and np.signbit(number):
            raise Refuse("subtracting -0.0 turns -0.0 into 0.0")
        return True

    def _where(self, match: Match, editor: Editor) -> None:
        condition = uniform(match["condition"])
        if condition is None:
            return
        chosen, other = (match["a"], match["b"]) if condition else (match["b"], match["a"])
        dims = editor.context.dims
        others = (dims(match["condition"]), dims(other))
        require(keeps_shape(None if others == ((), ()) else dims(chosen), *others), "the value left out may change the shape of the result")
        editor.replace(match.root.outputs[0], chosen)

    def _clip(self, match: Match, editor: Editor) -> None:
        node = match.root
        if editor.context.opset(node) < 11:
            return  # the limits are attributes, whose defaults are the largest finite numbers
        dtype = element_type(editor.context, match["x"])
        require(dtype is not None and dtype.is_integer(), "a Clip without limits still turns infinities into the largest finite numbers")
        editor.replace(node.outputs[0], match["x"])
