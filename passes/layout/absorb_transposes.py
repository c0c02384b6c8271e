"""Transposes whose work the weights behind them can do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Rewrite, const, constant_tensor, op, use_count, var
from graphopt.rewriting.guards import FLOATS, float_constant, only_consumer, require

from ..arguments import integer
from .permutations import Perm, inverse, is_identity, perm_of


@dataclass(frozen=True)
class AbsorbTransposes(Rewrite):
    """Drop a Transpose before a flattened input of MatMul or Gemm: the rows of the weight are put in its order instead."""

    name = "absorb-transposes"
    effect = Effect.ROUNDING  # products are summed up in another order

    def patterns(self) -> Sequence[Pattern]:
        flat = op(("Reshape", "Flatten"), op("Transpose", var("x"), bind="transpose"), ..., bind="flat")
        turned = op("Transpose", var("x"), bind="transpose")
        return (
            op(("MatMul", "Gemm"), flat, const("weight"), ...),
            op("Gemm", turned, ...),
            op("Gemm", var("a"), turned, ..., bind="second"),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        if "flat" in match:
            self._flattened(match, editor)
        else:
            self._matrix(match, editor, 1 if "second" in match else 0)

    def _matrix(self, match: Match, editor: Editor, index: int) -> None:
        """The Transpose of a matrix is an attribute of Gemm."""
        gemm, transpose = match.root, match["transpose"]
        name = ("transA", "transB")[index]
        flag = integer(gemm, name, 0)
        if flag is None or perm_of(editor.context, transpose) != (1, 0) or transpose.graph is not gemm.graph:
            return
        only_consumer(transpose.outputs[0], "the transposed matrix", gemm)
        editor.set_attribute(gemm, name, 1 - flag)
        editor.set_input(gemm, index, match["x"])

    def _flattened(self, match: Match, editor: Editor) -> None:
        product, flat, transpose, x, context = match.root, match["flat"], match["transpose"], match["x"], editor.context
        rows = _rows(context, product)
        perm = perm_of(context, transpose)
        sizes = _flattened_sizes(context, transpose.outputs[0], flat.outputs[0])
        if rows is None or perm is None or perm[0] != 0 or is_identity(perm) or sizes is None:
            return
        only_consumer(transpose.outputs[0], "the transposed value", flat)
        only_consumer(flat.outputs[0], "the flattened value", product)
        require(use_count(match["weight"]) == 1, f"the weight {match['weight'].name!r} has {use_count(match['weight'])} consumers")
        weight = float_constant(match["weight"], "the weight", FLOATS)
        if weight.ndim != 2 or weight.shape[rows] != math.prod(sizes):
            return
        name = flat.name or "Reshape"
        shape = editor.constant([-1, math.prod(sizes)], f"{name}/shape")
        y = editor.node("Reshape", [x, shape], name=name)
        reordered = editor.constant(_reordered(weight, rows, sizes, perm), f"{match['weight'].name}/reordered")
        inputs: list[ir.Value | None] = [y, reordered, *product.inputs[2:]]
        editor.replace(product.outputs[0], editor.node(product.op_type, inputs, dict(product.attributes), name=product.name))
        match.nodes = [product, flat, transpose]


def can_absorb(context: Context, flat: ir.Node, perm: Perm) -> bool:
    """Whether a Transpose by `perm`, standing alone before `flat`, could go into a weight behind it."""
    if flat.op_type not in ("Reshape", "Flatten") or flat.domain != "" or use_count(flat.outputs[0]) != 1 or perm[0] != 0:
        return False
    usage = flat.outputs[0].uses()[0]
    product = usage.node
    if product.op_type not in ("MatMul", "Gemm") or product.domain != "" or usage.idx != 0 or flat.outputs[0].is_graph_output():
        return False
    tensor = constant_tensor(product.inputs[1])
    if tensor is None or tensor.dtype not in FLOATS or use_count(product.inputs[1]) != 1:  # type: ignore[arg-type]
        return False
    return _rows(context, product) is not None and _flattened_sizes(context, flat.inputs[0], flat.outputs[0]) is not None


def _rows(context: Context, product: ir.Node) -> int | None:
    """The axis of the weight that the flattened values meet; None where the first input is transposed, or that is not known."""
    if product.op_type == "MatMul":
        return 0
    turned = integer(product, "transA", 0), integer(product, "transB", 0)
    return turned[1] if turned[0] == 0 else None


def _flattened_sizes(context: Context, before: ir.Value, after: ir.Value) -> tuple[int, ...] | None:
    """The sizes of the axes that are made one, where that is all of them but the first."""
    dims, flat = context.dims(before), context.dims(after)
    if dims is None or flat is None or len(flat) != 2 or any(not isinstance(d, int) or d == 0 for d in dims[1:]):
        return None
    return dims[1:] if flat[1] == math.prod(dims[1:]) else None  # type: ignore[arg-type, return-value]


def _reordered(weight: np.ndarray, rows: int, sizes: tuple[int, ...], perm: Perm) -> np.ndarray:
    """The weight for values that were not transposed."""
    order = [axis - 1 for axis in inverse(perm)[1:]]
    shape = weight.shape
    if rows == 0:
        turned = weight.reshape(*sizes, shape[1]).transpose([*order, len(order)])
    else:
        turned = weight.reshape(shape[0], *sizes).transpose([0, *(a + 1 for a in order)])
    return np.ascontiguousarray(turned.reshape(shape))
