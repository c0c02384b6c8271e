"""Operators that move elements about and here leave them where they are: same shape, same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Rewrite, op, var

from ..arguments import UNKNOWN, integer, ints

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


def is_shape_of(shape: ir.Value | None, x: ir.Value) -> bool:
    """Whether `shape` is the whole Shape of `x`, whatever that is."""
    producer = shape.producer() if shape is not None else None
    return (
        producer is not None and producer.op_type == "Shape" and producer.domain == "" and producer.inputs[0] is x
        and "start" not in producer.attributes and "end" not in producer.attributes
    )


def same_dims(context: Context, a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are proven to have one shape: numbers alike, symbols alike."""
    dims = context.dims(a)
    return dims is not None and dims == context.dims(b)


@dataclass(frozen=True)
class EliminateNoopShapeOps(Rewrite):
    """Remove Reshape, Expand, Flatten, Squeeze, Tile and Transpose that change nothing."""

    name = "eliminate-noop-shape-ops"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_noop_shape_ops

        eliminate_noop_shape_ops.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op(("Reshape", "Expand", "Tile"), var("x"), var("argument")), op(("Flatten", "Squeeze", "Transpose"), var("x"), ...))

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, x = match.root, match["x"]
        if _TESTS[node.op_type](editor.context, node, x):
            editor.replace(node.outputs[0], x)


def _reshape(context: Context, node: ir.Node, x: ir.Value) -> bool:
    if is_shape_of(node.inputs[1], x):
        return True
    zero_copies = integer(node, "allowzero", 0) == 0
    target = ints(context, node, "shape", 1)
    if target is None:
        return False
    if target == UNKNOWN:
        return same_dims(context, x, node.outputs[0])
    dims = context.dims(x)
    if dims is None or len(dims) != len(target):
        return False
    unlike = [t for t, d in zip(target, dims) if not (t == d or (t == 0 and zero_copies))]
    return not unlike or unlike == [-1]  # the one left over is what the others leave of the elements


def _expand(context: Context, node: ir.Node, x: ir.Value) -> bool:
    if is_shape_of(node.inputs[1], x):
        return True
    target = ints(context, node, "shape", 1)
    if target == ():
        return True
    dims = context.dims(x)
    if dims is None or target is None:
        return False
    if target == UNKNOWN:
        return same_dims(context, x, node.outputs[0])
    return len(target) <= len(dims) and all(t in (1, d) for t, d in zip(target, dims[len(dims) - len(target):]))


def _tile(context: Context, node: ir.Node, x: ir.Value) -> bool:
    if context.opset(node) < 6:  # the tile count and the axis were two inputs
        return False
    repeats = ints(context, node, "repeats", 1)
    return isinstance(repeats, tuple) and all(r == 1 for r in repeats)


def _flatten(context: Context, node: ir.Node, x: ir.Value) -> bool:
    return context.rank(x) == 2 and integer(node, "axis", 1) in (1, -1)


def _squeeze(context: Context, node: ir.Node, x: ir.Value) -> bool:
    if ints(context, node, "axes", 1) is not None:
        return False
    dims = context.static_dims(x)
    return dims is not None and 1 not in dims


def _transpose(context: Context, node: ir.Node, x: ir.Value) -> bool:
    perm = node.attributes.get("perm")
    if perm is None:
        rank = context.rank(x)
        return rank is not None and rank <= 1
    return not perm.is_ref() and list(perm.as_ints()) == list(range(len(perm.as_ints())))


_TESTS = {"Reshape": _reshape, "Expand": _expand, "Tile": _tile, "Flatten": _flatten, "Squeeze": _squeeze, "Transpose": _transpose}
