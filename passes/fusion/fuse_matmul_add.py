"""MatMul and Add of two matrices and a bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, const, constant_tensor, guards, op, var

from ..arguments import element_type, keeps_shape
from .reading import needs_opset

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class FuseMatmulAdd(Rewrite):
    """Write the MatMul of two matrices and the Add of a bias as Gemm.

    Only where both are known to be of rank 2: ONNX Runtime does the same with these, and a Gemm of anything else would need
    Reshapes, which hide the Add from the runtime's fusions with what follows.
    """

    name = "fuse-matmul-add"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return (op("Add", op("MatMul", var("a"), var("b"), bind="matmul"), const("bias"), commutative=True, bind="add"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, matmul, add, bias = editor.context, match["matmul"], match["add"], match["bias"]
        if constant_tensor(matmul.outputs[0]) is not None or not context.rank(match["a"]) == context.rank(match["b"]) == 2:
            return
        dims = context.dims(bias)
        columns = context.dims(match["b"])[1]
        if not keeps_shape((1, columns), dims) or (dims and math.prod(dims) not in (1, columns)):
            return  # no bias, but something for each row
        guards.same_graph(matmul, add)
        guards.only_consumer(matmul.outputs[0], "the product", add)
        needs_opset(context, add, "Gemm that broadcasts", 7)
        guards.require(element_type(context, match["a"]) in _TYPES, "it is not known to be of a floating-point type")
        output = add.outputs[0]
        editor.replace(output, editor.node("Gemm", [match["a"], match["b"], bias], name=matmul.name, like=output))
