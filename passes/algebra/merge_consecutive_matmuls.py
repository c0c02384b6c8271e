"""A product with one constant matrix and then with another is a product with their product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Editor, Effect, Match, Pattern, Refuse, Rewrite, const, constant_tensor, guards, op, option, var

from . import arithmetic
from .consecutive import MAX_WORK, WORK_HELP, guard_work, matrix_product
from .linear import DEFAULT_GROWTH, GROWTH_HELP, Linear, read

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_TYPES = ("MatMul", "Gemm")


@dataclass(frozen=True)
class MergeConsecutiveMatmuls(Rewrite):
    """Merge two MatMuls or Gemms with constant matrices, one directly behind the other, where one computes less.

    (x A + a) B + b = x (A B) + (a B + b), with A of K x N and B of N x M, where K M < K N + N M.
    """

    name = "merge-consecutive-matmuls"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})

    max_growth_bytes: int = option(DEFAULT_GROWTH, GROWTH_HELP, minimum=0)
    max_work: int = option(MAX_WORK, WORK_HELP, minimum=0)

    def patterns(self) -> Sequence[Pattern]:
        first = op(_TYPES, var("x"), ..., bind="first")
        biased = op("Add", op("MatMul", var("x"), const(), bind="first"), const(), commutative=True, bind="first_add")
        second = [op("MatMul", source, const(), bind="second") for source in (first, biased)]
        return (
            *(op("Add", product, const(), commutative=True, bind="second_add") for product in second),
            *second,
            *(op("Gemm", source, ..., bind="second") for source in (first, biased)),
        )

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import merge_consecutive_matmuls

        merge_consecutive_matmuls.run(context, self.max_growth_bytes, self.max_work)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, behind = editor.context, match["second"]
        adds = match.bound.get("first_add"), match.bound.get("second_add")
        guards.same_graph(*match.nodes)
        first, second = read(match["first"], context, adds[0]), read(behind, context, adds[1])
        if adds[0] is not None:
            guards.only_consumer(first.node.outputs[0], "the first product", adds[0])
        guards.only_consumer(first.output, "the first product", behind)
        if adds[1] is not None:
            guards.only_consumer(behind.outputs[0], "the second product", adds[1])
        guards.require(not guards.attribute(behind, "transA", 0), "the second Gemm transposes its input")
        guards.require(first.channels == second.inputs, "the matrices do not fit")
        if first.inputs * second.channels >= first.channels * (first.inputs + second.channels):
            raise Refuse("one matrix would compute as much as the two do")
        guard_work(first.inputs * first.channels * second.channels, self.max_work)
        for linear in (first, second):
            linear.guard_growth(self.max_growth_bytes)

        bias = second.bias_array()
        if first.bias is not None:
            bias = bias + second.answer_to_constant(first.bias_array())
        needed = first.bias is not None or second.bias is not None
        # A Gemm takes the bias; without one, a MatMul needs the second's Add, or the first's, which is stated anew.
        dtype = constant_tensor(first.weight).dtype.numpy()  # type: ignore[union-attr]
        left, right = (_matrix(linear) for linear in (first, second))
        weight = arithmetic.rounded(matrix_product(left, right) * (first.alpha * second.alpha), dtype, "the weight")
        self._state(editor, match, first, second, weight, arithmetic.rounded(bias, dtype, "the bias") if needed else None)

    def _state(
        self, editor: Editor, match: Match, first: Linear, second: Linear, weight: np.ndarray, bias: np.ndarray | None
    ) -> None:
        old, name = second.output, second.node.name or None
        inputs = [match["x"], editor.constant(weight, f"{second.weight.name}_merged")]
        vector: ir.Value | None = None
        if bias is not None:
            source = second.bias or first.bias
            assert source is not None
            vector = editor.constant(bias, f"{source.name}_merged")
        gemm = "Gemm" in (first.node.op_type, second.node.op_type)  # either one says that the rank is 2
        if gemm:
            transposed = first.node.attributes.get("transA") if first.node.op_type == "Gemm" else None
            attributes = {} if transposed is None else {"transA": transposed}
            new = editor.node("Gemm", [*inputs, *([] if vector is None else [vector])], attributes, name=name, like=old)
        else:
            new = editor.node("MatMul", inputs, name=name, like=old if vector is None else second.node.outputs[0])
            if vector is not None:
                new = editor.node("Add", [new, vector], name=(second.add or first.add).name or None, like=old)  # type: ignore[union-attr]
        editor.replace(old, new)


def _matrix(linear: Linear) -> np.ndarray:
    """The matrix of a product as [inputs, outputs]."""
    array = guards.float_constant(linear.weight, "the weight")
    return array.T if linear.transposed else array
