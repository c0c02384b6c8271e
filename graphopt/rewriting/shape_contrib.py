"""Shapes of operators of ONNX Runtime's own domain, com.microsoft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting.shape_movement import Size, merged, put

if TYPE_CHECKING:
    from graphopt.rewriting.shapes import ShapeAnalysis


def _same(analysis: ShapeAnalysis, node: ir.Node) -> None:
    put(node.outputs[0], node.inputs[0].shape, node.inputs[0].dtype)


def _skip_normalization(analysis: ShapeAnalysis, node: ir.Node) -> None:
    """The result and the sum are as the first input; mean and deviation are not written on CPUs."""
    for i in (0, 3):
        if i < len(node.outputs):
            put(node.outputs[i], node.inputs[0].shape, node.inputs[0].dtype)


def _embed_normalization(analysis: ShapeAnalysis, node: ir.Node) -> None:
    ids, table = node.inputs[0].shape, node.inputs[2]
    known = ids is not None and ids.rank() == 2 and table.shape is not None and table.shape.rank() == 2
    dims = [*ids.dims, table.shape.dims[1]] if known else None
    put(node.outputs[0], dims, table.dtype)
    if len(node.outputs) > 1:
        put(node.outputs[1], [ids.dims[0]] if known else None, ir.DataType.INT32)
    if len(node.outputs) > 2:
        put(node.outputs[2], dims, table.dtype)


def _library_of(name: str) -> Callable[[ShapeAnalysis, ir.Node], None]:
    return lambda analysis, node: analysis.by_library(node, like=name)


def _library(analysis: ShapeAnalysis, node: ir.Node) -> None:
    analysis.by_library(node)


def _fused_matmul(analysis: ShapeAnalysis, node: ir.Node) -> None:
    a, b = (_operand(node, i) for i in (0, 1))
    _product(analysis, node, a, b, node.inputs[0].dtype)


def _float_product(analysis: ShapeAnalysis, node: ir.Node) -> None:
    """DynamicQuantizeMatMul and MatMulIntegerToFloat: a quantized product, given back as floats."""
    a, b = (None if v.shape is None else list(v.shape.dims) for v in node.inputs[:2])
    _product(analysis, node, a, b, node.inputs[2].dtype)


def _blocked_product(analysis: ShapeAnalysis, node: ir.Node) -> None:
    """MatMulNBits: N in the place of the last dimension."""
    shape, count = node.inputs[0].shape, node.attributes.get("N")
    known = shape is not None and shape.rank() > 0 and count is not None and not count.is_ref()
    put(node.outputs[0], [*shape.dims[:-1], count.as_int()] if known else None, node.inputs[0].dtype)


def _blocked_rows(analysis: ShapeAnalysis, node: ir.Node) -> None:
    """GatherBlockQuantized: the type of the scales; the shape is left to what stood there before."""
    put(node.outputs[0], None, node.inputs[2].dtype)


def _operand(node: ir.Node, index: int) -> list[Size] | None:
    """The dimensions of an operand as the product sees it."""
    shape, letter = node.inputs[index].shape, "AB"[index]
    if shape is None:
        return None
    dims = list(shape.dims)
    if len(dims) > 2 and _flag(node, f"transBatch{letter}"):
        dims = [*dims[1:-1], dims[0], dims[-1]]
    if len(dims) > 1 and _flag(node, f"trans{letter}"):
        dims[-2:] = dims[:-3:-1]
    return dims


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and bool(attribute.as_int())


def _product(
    analysis: ShapeAnalysis, node: ir.Node, a: Sequence[Size] | None, b: Sequence[Size] | None, dtype: ir.DataType | None
) -> None:
    dims = None
    if a and b:
        batch = merged(analysis, [a[:-2], b[:-2]])
        dims = None if batch is None else [*batch, *a[-2:-1], *b[-1:][: len(b) - 1]]
    put(node.outputs[0], dims, dtype)


CONTRIB: dict[str, Callable[[ShapeAnalysis, ir.Node], None]] = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), _same),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_normalization),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), _float_product),
    "DynamicQuantizeLSTM": _library,
    "EmbedLayerNormalization": _embed_normalization,
    "FusedConv": _library_of("Conv"),
    "FusedGemm": _library_of("Gemm"),
    "FusedMatMul": _fused_matmul,
    "GatherBlockQuantized": _blocked_rows,
    "MatMulNBits": _blocked_product,
}
