"""Elementwise operators of an ATen graph with one constant operand, read as a multiplication and an addition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.rewriting import Refuse

from ..algebra.arithmetic import elementwise_affine

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext

_KINDS = {"add": "Add", "sub": "Sub", "rsub": "Sub", "mul": "Mul", "div": "Div"}
_BY_OPERATOR = {f"aten.{name}.{overload}": kind for name, kind in _KINDS.items() for overload in ("Tensor", "Scalar")}
NEG = "aten.neg.default"
STEPS = (*_BY_OPERATOR, NEG)
FLOATS = ("float16", "bfloat16", "float32", "float64")

_LARGEST = 1 << 20  # elements of a constant
_FUSED_BEHIND = ("erf", "tanh", "sqrt", "rsqrt", "sigmoid", "mean", "reciprocal")
_LOOK_BACK = 12  # operators of a spelled-out activation or normalization


@dataclass(frozen=True)
class Step:
    """One operator.

    Attributes:
        node: the operator.
        x: what it is applied to.
        kind: "Add", "Sub", "Mul", "Div" or "Neg".
        constant: the placeholder of its constant operand, a number, or None for "Neg".
        constant_first: whether it is constant - x.
        factor: of the constant ("alpha").
    """

    node: Node
    x: Node
    kind: str
    constant: Node | float | None
    constant_first: bool = False
    factor: float = 1.0

    def dims(self, context: AtenContext) -> tuple[int, ...]:
        """The shape of the constant."""
        shape = () if self.constant is None or isinstance(self.constant, int | float) else context.static_shape(self.constant)
        if shape is None or np.prod(shape, dtype=np.int64) > _LARGEST:
            raise Refuse("the constant is large")
        return shape

    def affine(self, context: AtenContext) -> tuple[np.ndarray, np.ndarray]:
        """`mul` and `add`, in double precision and the shape of the constant; refuses a constant that is not finite."""
        if self.kind == "Neg":
            return np.asarray(-1.0), np.zeros(())
        number = isinstance(self.constant, int | float)
        value = np.asarray(self.constant, np.float64) if number else context.required(self.constant, "the constant").astype(np.float64)
        return elementwise_affine(self.kind, value * self.factor, constant_first=self.constant_first)

    def tensors(self) -> tuple[Node, ...]:
        """The placeholder of the constant, where it has one."""
        return () if self.constant is None or isinstance(self.constant, int | float) else (self.constant,)


def read_step(node: Any, context: AtenContext) -> Step | None:
    """The step at `node`; None where it is another operator, has no constant operand, or is not of one floating-point type."""
    operator = context.op(node)
    if operator not in STEPS or context.dtype(node) not in FLOATS:
        return None
    given = context.arguments(node)
    left, right = given["self"], given.get("other")
    if operator == NEG:
        return Step(node, left, "Neg", None)
    kind, factor = _BY_OPERATOR[operator], given.get("alpha", 1)
    if operator.startswith("aten.rsub"):
        left, right = right, left
    if not isinstance(factor, int | float) or (constants := (_constant(left, context), _constant(right, context))).count(True) != 1:
        return None
    first = constants[0]
    x, constant = (right, left) if first else (left, right)
    if context.dtype(x) != context.dtype(node) or (first and (kind == "Div" or factor != 1)):
        return None
    return Step(node, x, kind, constant, first, float(factor))


def guard_runtime_fusion(x: Node, context: AtenContext) -> None:
    """Refuse to take the last factor off an activation or a normalization that is spelled out.

    What compiles the program may know these by their whole shape (GELU, layer norm) and run them as one operator.
    """
    front, seen = [x], 0
    while front and seen < _LOOK_BACK:
        node = front.pop(0)
        operator = context.op(node).removeprefix("aten.").partition(".")[0]
        seen += 1
        if operator in _FUSED_BEHIND:
            raise Refuse("it ends an activation or a normalization that the runtime fuses")
        if operator in _KINDS:
            front += node.all_input_nodes


def _constant(value: Any, context: AtenContext) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) or context.is_constant(value)
