"""Transposes and constant factors beside a MatMul go into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Refuse, Rewrite, guards, op, use_count, var

from ..fusion.reading import beside, goes_to, made_by, number, operand
from .activations import require_unquantized
from .contrib import DOMAIN, is_constant, require_type, state

_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Operand:
    """One operand as the product reads it: first turned by `trans_batch`, then by `trans`, times `factor`."""

    value: ir.Value
    trans_batch: bool = False
    trans: bool = False
    factor: float = 1.0
    nodes: tuple[ir.Node, ...] = ()


@dataclass(frozen=True)
class FuseMatmul(Rewrite):
    """Write MatMul with the Transposes before it and the constant factors beside it as FusedMatMul.

    A Transpose goes in where it swaps the last two axes, or brings the first before the last one or two. ONNX Runtime
    1.32 does the same when it loads a model. A product with a bias behind it stays a MatMul: both are one Gemm.
    """

    name = "fuse-matmul"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return op("MatMul", var("a"), var("b")), op("FusedMatMul", var("a"), var("b"), domain=DOMAIN)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, root = editor.context, match.root
        a, b = (_operand(context, root, i) for i in (0, 1))
        tail, factor = _factor_behind(context, root)
        last = tail if tail is not None else root
        if not a.nodes and not b.nodes and tail is None:
            return
        match.nodes += [*a.nodes, *b.nodes, *([tail] if tail is not None else [])]
        guards.same_graph(*match.nodes)
        for side in (a, b):
            for node in side.nodes:
                users = [n for n in match.nodes if n is not node and node.outputs[0] in n.inputs]
                guards.only_consumer(node.outputs[0], f"the result of {node.op_type}", users[0])
        if _has_bias(context, last):
            raise Refuse("it is one Gemm with the bias behind it")
        require_type(context, root.outputs[0], _TYPES)
        require_unquantized(root, last.outputs[0])
        ranks = [context.rank(root.inputs[i]) for i in (0, 1)]
        guards.require(all(r is not None and r >= 2 for r in ranks), "its operands are not known to be matrices")
        if a.trans_batch or b.trans_batch:
            guards.require(ranks[0] == ranks[1], "its operands are of different ranks")
        alpha = float(guards.attribute(root, "alpha", 1.0)) * a.factor * b.factor * factor
        guards.require(abs(alpha) <= _LARGEST, "its factors together are not finite")
        if context.dtype(root.outputs[0]) is ir.DataType.DOUBLE:  # the attribute is single precision
            guards.require(float(np.float32(alpha)) == alpha, "its factor would lose digits")
        given = {
            "alpha": alpha, "transA": int(a.trans), "transB": int(b.trans),
            "transBatchA": int(a.trans_batch), "transBatchB": int(b.trans_batch),
        }
        defaults = {"alpha": 1.0}
        attributes = {name: value for name, value in given.items() if value != defaults.get(name, 0)}
        state(editor, "FusedMatMul", [a.value, b.value], attributes, of=last)


def _operand(context: Context, root: ir.Node, index: int) -> Operand:
    """What may be taken from before operand number `index`: factors and one Transpose, in any order."""
    letter = "AB"[index]
    side = Operand(
        root.inputs[index],  # type: ignore[arg-type]
        bool(guards.attribute(root, f"transBatch{letter}", 0)), bool(guards.attribute(root, f"trans{letter}", 0)),
    )
    while True:
        node = made_by(side.value, "Transpose", "Mul", "Div")
        if node is None:
            return side
        if node.op_type == "Transpose":
            found = _turned(node, side)
            if found is None:
                return side
            side = found
            continue
        x, factor = _scaled(context, node)
        if x is None or is_constant(x):
            return side
        side = replace(side, value=x, factor=side.factor * factor, nodes=(*side.nodes, node))


def _turned(transpose: ir.Node, side: Operand) -> Operand | None:
    """The operand read from before a Transpose, or None where the flags cannot say what it does."""
    perm = transpose.attributes.get("perm")
    if perm is None or perm.is_ref():
        return None
    order = tuple(perm.as_ints())
    rank = len(order)
    if rank < 2 or (rank > 2 and side.trans_batch):
        return None
    plain = tuple(range(rank))
    if order == (*plain[:-2], rank - 1, rank - 2):
        return replace(side, value=transpose.inputs[0], trans=not side.trans, nodes=(*side.nodes, transpose))
    if rank < 3:
        return None
    if order == (*plain[1:-1], 0, rank - 1):
        return replace(side, value=transpose.inputs[0], trans_batch=True, nodes=(*side.nodes, transpose))
    if order == (*plain[1:], 0):
        return replace(side, value=transpose.inputs[0], trans_batch=True, trans=not side.trans, nodes=(*side.nodes, transpose))
    return None


def _scaled(context: Context, node: ir.Node) -> tuple[ir.Value | None, float]:
    """x and c where a node computes c x, for a constant number c."""
    for x in node.inputs:
        constant = None if x is None else beside(context, node, x)
        if constant is None or (node.op_type == "Div" and x is not node.inputs[0]):
            continue
        factor = number(constant)
        if node.op_type == "Div":
            return (x, 1 / factor) if factor else (None, 1.0)
        return x, factor  # type: ignore[return-value]
    return None, 1.0


def _factor_behind(context: Context, root: ir.Node) -> tuple[ir.Node | None, float]:
    """The Mul or Div by a constant number behind the product, and the factor."""
    node = goes_to(root.outputs[0], "Mul", "Div")
    if node is None:
        return None, 1.0
    x, factor = _scaled(context, node)
    return (node, factor) if x is root.outputs[0] else (None, 1.0)


def _has_bias(context: Context, last: ir.Node) -> bool:
    output = last.outputs[0]
    if use_count(output) != 1:
        return False
    add = goes_to(output, "Add")
    bias = operand(add, output) if add is not None else None
    return bias is not None and is_constant(bias) and context.rank(bias) == 1
