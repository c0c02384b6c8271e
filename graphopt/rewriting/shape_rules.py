"""Shapes of the operators for which `onnx_shape_inference` promises more than holds, or is slow.

Each rule sets shapes and types of the outputs of a node. What is not certain stays a fresh symbol, or without a shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting.constants import constant_array, constant_tensor
from graphopt.rewriting.shape_movement import MOVEMENT, Size, merged, put
from graphopt.rewriting.shape_values import Element, settle

if TYPE_CHECKING:
    from graphopt.rewriting.shapes import ShapeAnalysis



def _broadcast(analysis: ShapeAnalysis, node: ir.Node, dtype: ir.DataType | None) -> None:
    inputs = [v for v in node.inputs if v is not None]
    shapes = [v.shape for v in inputs]
    if any(s is None for s in shapes):
        put(node.outputs[0], None, dtype)
    elif analysis.version(node) < 7 or all(s == shapes[0] for s in shapes[1:]):
        put(node.outputs[0], shapes[0], dtype)  # before opset 7 the second operand was broadcast to the first
    else:
        put(node.outputs[0], merged(analysis, [s.dims for s in shapes]), dtype)


def _elementwise(analysis: ShapeAnalysis, node: ir.Node) -> None:
    _broadcast(analysis, node, next((v.dtype for v in node.inputs if v is not None and v.dtype is not None), None))


def _power(analysis: ShapeAnalysis, node: ir.Node) -> None:
    _broadcast(analysis, node, node.inputs[0].dtype)


def _comparison(analysis: ShapeAnalysis, node: ir.Node) -> None:
    _broadcast(analysis, node, ir.DataType.BOOL)


def _where(analysis: ShapeAnalysis, node: ir.Node) -> None:
    _broadcast(analysis, node, node.inputs[1].dtype or node.inputs[2].dtype)


def _same(analysis: ShapeAnalysis, node: ir.Node) -> None:
    put(node.outputs[0], node.inputs[0].shape, node.inputs[0].dtype)


def _predicate(analysis: ShapeAnalysis, node: ir.Node) -> None:
    put(node.outputs[0], node.inputs[0].shape, ir.DataType.BOOL)


def _batch_normalization(analysis: ShapeAnalysis, node: ir.Node) -> None:
    _same(analysis, node)
    for value in node.outputs[1:]:
        put(value, None, None)


def _shape(analysis: ShapeAnalysis, node: ir.Node) -> None:
    shape = node.inputs[0].shape
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    length = None
    if shape is not None:
        length = len(shape.dims[start.as_int() if start is not None else 0 : end.as_int() if end is not None else None])
    put(node.outputs[0], [analysis.fresh() if length is None else length], ir.DataType.INT64)


def _matmul(analysis: ShapeAnalysis, node: ir.Node) -> None:
    a, b, dtype = node.inputs[0], node.inputs[1], node.inputs[0].dtype or node.inputs[1].dtype
    if node.op_type == "QLinearMatMul":
        b, dtype = node.inputs[3], node.inputs[7].dtype
    elif node.op_type == "MatMulInteger":
        dtype = ir.DataType.INT32
    if a.shape is None or b.shape is None or not a.shape.rank() or not b.shape.rank():
        return put(node.outputs[0], None, dtype)
    left, right = a.shape.dims, b.shape.dims
    batch = merged(analysis, [left[:-2], right[:-2]])
    if batch is None:
        return put(node.outputs[0], None, dtype)
    rows = [left[-2]] if len(left) > 1 else []
    columns = [right[-1]] if len(right) > 1 else []
    return put(node.outputs[0], [*batch, *rows, *columns], dtype)


def _resize(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x = node.inputs[0]
    if x.shape is None:
        return put(node.outputs[0], None, x.dtype)
    dims, rank = list(x.shape.dims), x.shape.rank()
    axes = [a % rank for a in node.attributes["axes"].as_ints()] if "axes" in node.attributes else list(range(rank))
    text = {name: node.attributes[name].as_string() for name in _RESIZE_TEXTS if name in node.attributes}
    old = node.op_type == "Upsample" or analysis.version(node) < 11
    given = list(node.inputs) + [None] * 4
    scales, sizes = (given[1], None) if old else (given[2], given[3])
    new: Sequence[Element] = [None] * len(axes)
    if sizes is not None:
        if text.get("keep_aspect_ratio_policy", "stretch") == "stretch":
            new = analysis.elements(sizes) or new
    elif scales is not None and text.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        factors = constant_array(scales, max_bytes=256)
        if factors is not None and factors.size == len(axes):
            new = [_scaled(dims[a], factor) for a, factor in zip(axes, factors.reshape(-1).tolist())]
    for axis, size in zip(axes, analysis.sizes(new)):
        dims[axis] = size
    return put(node.outputs[0], dims, x.dtype)


_RESIZE_TEXTS = ("keep_aspect_ratio_policy", "coordinate_transformation_mode")


def _scaled(dim: Size, factor: float) -> Element:
    """floor(dim * factor) where float32 and exact arithmetic agree."""
    exact = Fraction(factor)
    if isinstance(dim, int):
        size = math.floor(dim * exact)
        return size if size == math.floor(np.float32(dim) * np.float32(factor)) else None
    if exact.denominator == 1:
        return settle(dim * exact.numerator)
    if exact.denominator & (exact.denominator - 1) == 0 and exact.denominator <= 256 and exact.numerator < 256:
        return settle((dim * exact.numerator) // exact.denominator)
    return None


def _pool(analysis: ShapeAnalysis, node: ir.Node) -> None:
    analysis.by_library(node)
    output = node.outputs[0]
    ceil = node.attributes.get("ceil_mode")
    if ceil is not None and ceil.as_int() and output.shape is not None:
        # The last window is left out where it starts in the padding, which depends on the size.
        shape = [*output.shape.dims[:2], *(d if isinstance(d, int) else analysis.fresh() for d in output.shape.dims[2:])]
        for value in node.outputs:
            put(value, shape, value.dtype)


def _constant_of_shape(analysis: ShapeAnalysis, node: ir.Node) -> None:
    fill = node.attributes.get("value")
    dtype = ir.DataType.FLOAT if fill is None else fill.as_tensor().dtype
    put(node.outputs[0], _of_elements(analysis, node.inputs[0]), dtype)


def _of_elements(analysis: ShapeAnalysis, value: ir.Value) -> list[Size] | None:
    sizes = analysis.elements(value)
    if sizes is None:
        length = value.shape[0] if value.shape is not None and value.shape.rank() == 1 else None
        sizes = [None] * length if isinstance(length, int) else None
    return None if sizes is None else analysis.sizes(sizes)


def _range(analysis: ShapeAnalysis, node: ir.Node) -> None:
    bounds = [analysis.elements(v) for v in node.inputs]
    start, limit, step = (b[0] if b is not None and len(b) == 1 else None for b in bounds)
    length: Element = None
    if start is not None and limit is not None and isinstance(step, int) and step:
        if isinstance(start, int) and isinstance(limit, int):
            length = len(range(start, limit, step))
        elif step > 0:
            span = settle(limit - start)
            length = analysis.at_least_zero(span)
            length = length if step == 1 else settle(-((-length) // step))
    put(node.outputs[0], analysis.sizes([length]), node.inputs[0].dtype)


def _nonzero(analysis: ShapeAnalysis, node: ir.Node) -> None:
    rank = node.inputs[0].shape.rank() if node.inputs[0].shape is not None else 0
    put(node.outputs[0], [rank or analysis.fresh(), analysis.fresh()], ir.DataType.INT64)


def _compress(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x, axis = node.inputs[0], node.attributes.get("axis")
    dims: list[Size] | None = [analysis.fresh()]
    if axis is not None:
        dims = None if x.shape is None else list(x.shape.dims)
        if dims is not None:
            dims[axis.as_int()] = analysis.fresh()
    put(node.outputs[0], dims, x.dtype)


def _unique(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x, axis = node.inputs[0], node.attributes.get("axis")
    dims: list[Size] | None = [analysis.fresh()]
    if axis is not None:
        dims = None if x.shape is None else list(x.shape.dims)
        if dims is not None:
            dims[axis.as_int()] = analysis.fresh()
    put(node.outputs[0], dims, x.dtype)
    for value in node.outputs[1:]:
        put(value, [analysis.fresh()], ir.DataType.INT64)


def _topk(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x = node.inputs[0]
    dims = None if x.shape is None else list(x.shape.dims)
    if dims is not None:
        count = [node.attributes["k"].as_int()] if "k" in node.attributes else analysis.elements(node.inputs[1]) or [None]
        dims[node.attributes["axis"].as_int() if "axis" in node.attributes else -1] = analysis.sizes(count)[0]
    put(node.outputs[0], dims, x.dtype)
    if len(node.outputs) > 1:
        put(node.outputs[1], dims, ir.DataType.INT64)


def _onehot(analysis: ShapeAnalysis, node: ir.Node) -> None:
    indices, depth, values = node.inputs
    dims = None if indices.shape is None else list(indices.shape.dims)
    if dims is not None:
        found = analysis.elements(depth)
        tensor = constant_tensor(depth)
        if found is None and tensor is not None and tensor.size == 1:
            found = [int(tensor.numpy().reshape(-1)[0])]
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, analysis.sizes((found or [None])[:1])[0])
    put(node.outputs[0], dims, values.dtype)


def _einsum(analysis: ShapeAnalysis, node: ir.Node) -> None:
    equation = node.attributes["equation"].as_string().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    dtype = node.inputs[0].dtype
    shapes = [v.shape for v in node.inputs]
    if "." in equation or any(s is None for s in shapes) or [len(t) for t in terms] != [s.rank() for s in shapes]:
        return put(node.outputs[0], None, dtype)
    dims: dict[str, list[tuple[Size]]] = {}
    for term, shape in zip(terms, shapes):
        for label, dim in zip(term, shape.dims):
            dims.setdefault(label, []).append((dim,))
    if not arrow:
        letters = left.replace(",", "")
        right = "".join(sorted(c for c in dims if letters.count(c) == 1))
    found = [merged(analysis, dims[c]) for c in right]
    return put(node.outputs[0], None if any(f is None for f in found) else [f[0] for f in found], dtype)


_SAME = """
Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh CumSum Elu Erf Exp Floor Gelu HardSigmoid HardSwish
Hardmax InstanceNormalization LeakyRelu Log LogSoftmax LpNormalization LRN MeanVarianceNormalization Mish Neg PRelu Reciprocal
Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Trilu
"""
_ELEMENTWISE = "Add Sub Mul Div Mod BitShift BitwiseAnd BitwiseOr BitwiseXor Max Mean Min Sum"
_COMPARISONS = "And Or Xor Equal Greater Less GreaterOrEqual LessOrEqual"

RULES: dict[str, Callable[[ShapeAnalysis, ir.Node], None]] = {
    **MOVEMENT,
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_COMPARISONS.split(), _comparison),
    **dict.fromkeys(("Not", "IsNaN", "IsInf"), _predicate),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    "BatchNormalization": _batch_normalization,
    "Compress": _compress,
    "ConstantOfShape": _constant_of_shape,
    "Einsum": _einsum,
    "NonZero": _nonzero,
    "OneHot": _onehot,
    "Pow": _power,
    "Range": _range,
    "Resize": _resize,
    "Shape": _shape,
    "TopK": _topk,
    "Unique": _unique,
    "Upsample": _resize,
    "Where": _where,
}
