"""MatMulInteger and the scaling behind it, as quantize_dynamic writes them, as one operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Refuse, Rewrite, guards, is_used, op, use_count, var

from ..arguments import integer
from ..fusion.reading import goes_to, operand
from .contrib import FLOAT, is_constant, require_type, state


@dataclass(frozen=True)
class FuseDynamicQuantizeMatmul(Rewrite):
    """Write MatMulInteger, Cast, Mul by the scales and Add of a bias as DynamicQuantizeMatMul or MatMulIntegerToFloat.

    The first where the DynamicQuantizeLinear before it serves this product alone, as ONNX Runtime does when it loads a
    model. The sums of products are the same integers.
    """

    name = "fuse-dynamic-quantize-matmul"
    effect = Effect.ROUNDING
    providers = frozenset({"cpu"})

    def patterns(self) -> Sequence[Pattern]:
        product = op("MatMulInteger", var("a"), var("b"), var("a_zero", optional=True), var("b_zero", optional=True), bind="product")
        scales = op("Mul", var("left"), var("right"), bind="scales")
        return (op("Mul", op("Cast", product, bind="cast"), scales, commutative=True),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, root, product, cast, scales = editor.context, match.root, match["product"], match["cast"], match["scales"]
        quantize = match["a"].producer()
        if quantize is None or quantize.op_type != "DynamicQuantizeLinear" or match["a_zero"] is not quantize.outputs[2]:
            return
        b_scale = operand(scales, quantize.outputs[1])
        if b_scale is None or integer(cast, "to", 0) != ir.DataType.FLOAT:
            return
        guards.same_graph(*match.nodes)
        guards.only_consumer(product.outputs[0], "the product", cast)
        guards.only_consumer(cast.outputs[0], "the product as floats", root)
        require_type(context, quantize.inputs[0], FLOAT)
        b, b_zero = match["b"], match["b_zero"]
        columns = _columns(context, b)
        _require_parameter(context, b_scale, columns, "the scale")
        if b_zero is not None:
            _require_parameter(context, b_zero, columns, "the zero point")
            guards.require(
                context.static_dims(b_zero) == context.static_dims(b_scale) or context.static_dims(b_zero) in ((), (1,)),
                "there are more zero points than scales",
            )
        last, bias = _bias(context, root, columns)
        if last is not root:
            match.nodes.append(last)
        alone = quantize.graph is root.graph and _serves_alone(quantize, product, scales)
        if alone:
            match.nodes.append(quantize)
            state(editor, "DynamicQuantizeMatMul", [quantize.inputs[0], b, b_scale, b_zero, bias], of=last)
        else:
            x, scale, zero = quantize.outputs
            state(editor, "MatMulIntegerToFloat", [x, b, scale, b_scale, zero, b_zero, bias], of=last)


def _columns(context: Context, b: ir.Value) -> int:
    dims = context.static_dims(b)
    guards.require(dims is not None and len(dims) == 2, "the weight is not known to be a matrix")
    return dims[1]  # type: ignore[index]


def _require_parameter(context: Context, value: ir.Value, columns: int, what: str) -> None:
    if not is_constant(value):
        raise Refuse(f"{what} {value.name!r} of the weight is not constant")
    guards.require(context.static_dims(value) in ((), (1,), (columns,)), f"{what} of the weight is neither one nor one a column")


def _bias(context: Context, root: ir.Node, columns: int) -> tuple[ir.Node, ir.Value | None]:
    """The Add of a vector behind the product, and the vector."""
    add = goes_to(root.outputs[0], "Add")
    bias = operand(add, root.outputs[0]) if add is not None else None
    if bias is not None and is_constant(bias) and context.static_dims(bias) == (columns,):
        return add, bias  # type: ignore[return-value]
    return root, None


def _serves_alone(quantize: ir.Node, product: ir.Node, scales: ir.Node) -> bool:
    uses = [(v, n) for v, n in zip(quantize.outputs, (product, scales, product))]
    alone = all(use_count(v) == 1 and v.uses()[0].node is n and not v.is_graph_output() for v, n in uses)
    return alone and use_count(scales.outputs[0]) == 1 and is_used(scales.outputs[0]) and not scales.outputs[0].is_graph_output()
