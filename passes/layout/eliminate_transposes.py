"""Transposes that cancel, or that one Transpose can do together.

Between the two may stand operators that treat each element by itself: these work on either layout, so the first
Transpose is moved behind them, to the second. That is done only where at least one node goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Refuse, Rewrite, constant_tensor, op, option, var
from graphopt.rewriting.guards import only_consumer

# Inputs from the second on must be scalars. All are correctly rounded, or do not round: a kernel may treat an element
# in the body of its loop differently from one in the remainder, and only of such operators the result is the same.
CORRECTLY_ROUNDED = frozenset(
    (
        "Abs", "BitwiseNot", "Cast", "Ceil", "Clip", "DequantizeLinear", "Floor", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Neg", "Not",
        "QuantizeLinear", "Relu", "Round", "Sign", "Sqrt", "ThresholdedRelu",
    )
)
# One of the two inputs must be a single element.
_BINARY = frozenset(
    ("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Or", "PRelu", "Sub", "Xor")
)


@dataclass(frozen=True)
class EliminateTransposes(Rewrite):
    """Cancel and merge Transposes, also across element-wise operators between them."""

    name = "eliminate-transposes"

    across: ClassVar[frozenset[str]] = CORRECTLY_ROUNDED

    reach: int = option(8, "how many element-wise operators may stand between two Transposes", minimum=0, maximum=64)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Transpose", var("y")),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        outer = match.root
        chain = self._chain(outer, editor.context)
        if chain is None:
            return
        (inner, _), between = chain[0], chain[1:]
        merged = _merged(inner, outer)
        if merged is None:
            return
        cancel = merged == sorted(merged)
        if between:
            _guard_savings([node for node, _ in chain], outer, cancel)
        x = inner.inputs[0]
        assert x is not None
        for node, path in between:
            inputs = [x if i == path else v for i, v in enumerate(node.inputs)]
            x = editor.node(node.op_type, inputs, dict(node.attributes), name=node.name)
        if not cancel:
            x = editor.node("Transpose", [x], {"perm": merged}, name=outer.name)
        editor.replace(outer.outputs[0], x)
        match.nodes = [outer, *(node for node, _ in reversed(chain))]

    def _chain(self, outer: ir.Node, context: Context) -> list[tuple[ir.Node, int]] | None:
        """The Transpose before `outer` and the operators between, in order; each with the input that leads back."""
        chain: list[tuple[ir.Node, int]] = []
        value = outer.inputs[0]
        while len(chain) <= self.reach:
            node = value.producer() if value is not None else None
            if node is None or node.domain != "" or node.graph is not outer.graph:
                return None
            if node.op_type == "Transpose":
                return [(node, 0), *reversed(chain)]
            path = self._path(node, context)
            if path is None:
                return None
            chain.append((node, path))
            value = node.inputs[path]
        return None

    def _path(self, node: ir.Node, context: Context) -> int | None:
        """Which input an element-wise operator takes its elements from, the others being scalars; None: not of that kind."""
        inputs = node.inputs
        if len(node.outputs) != 1 or not inputs or inputs[0] is None:
            return None
        if node.op_type in self.across:
            return 0 if all(v is None or context.dims(v) == () for v in inputs[1:]) else None
        if node.op_type not in _BINARY or len(inputs) != 2 or inputs[1] is None or context.opset(node) < 7:
            return None
        if _is_scalar(inputs[1]):
            return 0
        return 1 if node.op_type != "PRelu" and _is_scalar(inputs[0]) else None


def _is_scalar(value: ir.Value) -> bool:
    """Whether a constant is one element that adds no dimension to what it is broadcast with."""
    tensor = constant_tensor(value)
    return tensor is not None and tensor.size == 1 and len(tensor.shape) <= 1


def _merged(inner: ir.Node, outer: ir.Node) -> list[int] | None:
    """The permutation that two Transposes make together; empty where they cancel at any rank, None where it is not known."""
    perms = [node.attributes.get("perm") for node in (inner, outer)]
    if any(p is not None and p.is_ref() for p in perms):
        return None
    first, second = (None if p is None else list(p.as_ints()) for p in perms)
    if first is None and second is None:
        return []  # both reverse
    rank = len(first if first is not None else second)  # type: ignore[arg-type]
    reverse = list(range(rank))[::-1]
    first, second = (reverse if p is None else p for p in (first, second))
    if len(first) != len(second):
        return None
    return [first[axis] for axis in second]


def _guard_savings(chain: list[ir.Node], outer: ir.Node, cancel: bool) -> None:
    """Refuse where another consumer would make the old nodes stay beside the new ones."""
    for node, consumer in zip(chain, [*chain[1:], outer]):
        if node is chain[0] and cancel:
            continue  # the first may stay: the second goes
        try:
            only_consumer(node.outputs[0], "between two Transposes", consumer)
        except Refuse as refusal:
            raise Refuse(f"{refusal.reason}, so that moving a Transpose saves nothing") from None
