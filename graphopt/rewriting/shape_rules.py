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
from graphopt.rewriting.shape_values import Element, settle

if TYPE_CHECKING:
    from graphopt.rewriting.shapes import ShapeAnalysis

Size = int | ir.SymbolicDim
_FAR = 2**31 - 1  # a slice to here or further goes to the end


def put(value: ir.Value, shape: ir.Shape | Sequence[Size] | None, dtype: ir.DataType | None) -> None:
    """Set what was inferred for one value; None: not known."""
    value.shape = shape if shape is None or isinstance(shape, ir.Shape) else ir.Shape(shape)
    if dtype is not None and value.dtype is not dtype:
        value.type = ir.TensorType(dtype)


def merged(analysis: ShapeAnalysis, shapes: Sequence[Sequence[Size]]) -> list[Size] | None:
    """The shape that shapes broadcast to: two unlike symbols give neither, because one of them may be 1."""
    result: list[Size] = []
    for axis in range(-max((len(s) for s in shapes), default=0), 0):
        found: Size = 1
        unsure = False
        for shape in shapes:
            if len(shape) < -axis or shape[axis] == 1 or shape[axis] == found:
                continue
            dim = shape[axis]
            if isinstance(found, int) and found != 1:
                if isinstance(dim, int):
                    return None
            elif found == 1 or isinstance(dim, int):
                found, unsure = dim, False
            elif analysis.cut_from(found, dim):
                found = dim
            elif not analysis.cut_from(dim, found):
                unsure = True
        result.append(analysis.fresh() if unsure else found)
    return result


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


def _transpose(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x = node.inputs[0]
    perm = node.attributes.get("perm")
    dims = None
    if x.shape is not None:
        order = list(perm.as_ints()) if perm is not None else list(range(x.shape.rank()))[::-1]
        if sorted(order) == list(range(x.shape.rank())):
            dims = [x.shape.dims[i] for i in order]
    put(node.outputs[0], dims, x.dtype)


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


def _expand(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x, target = node.inputs[0], analysis.elements(node.inputs[1])
    if target is None:
        length = node.inputs[1].shape[0] if node.inputs[1].shape is not None else None
        target = [None] * length if isinstance(length, int) else None
    dims = None
    if x.shape is not None and target is not None:
        dims = merged(analysis, [x.shape.dims, analysis.sizes(target)])
    put(node.outputs[0], dims, x.dtype)


def _reshape(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x = node.inputs[0]
    if "shape" in node.attributes:
        target: Sequence[Element] | None = list(node.attributes["shape"].as_ints())
    else:
        target = analysis.elements(node.inputs[1])
        if target is None and node.inputs[1].shape is not None and isinstance(node.inputs[1].shape[0], int):
            target = [None] * node.inputs[1].shape[0]
    if target is None:
        return put(node.outputs[0], None, x.dtype)
    allowzero = node.attributes.get("allowzero")
    return put(node.outputs[0], reshaped(analysis, x.shape, target, allowzero is not None and allowzero.as_int() != 0), x.dtype)


def reshaped(analysis: ShapeAnalysis, shape: ir.Shape | None, target: Sequence[Element], allowzero: bool) -> list[Size]:
    """The shape that a Reshape of a value of shape `shape` to `target` has."""
    source = shape.dims if shape is not None else None
    dims: list[Size] = []
    rest = None
    sure = True  # whether the product of the other sizes is what the expressions say, even for sizes of 0
    for i, size in enumerate(target):
        copied = source[i] if source is not None and i < len(source) else None
        if size == -1:
            rest = i
        if size == 0 and not allowzero:
            size = copied
        elif size is not None and not isinstance(size, int):
            if not analysis.nonnegative(size):
                size = None  # it may be -1
            elif not (allowzero or size == copied or analysis.positive(size)):
                sure = sure and copied is not None and analysis.divides(size, copied)
        dims.append(analysis.fresh() if size is None or size == -1 else size)
        sure = sure and size is not None
    others = [d for i, d in enumerate(dims) if i != rest]
    if rest is not None and sure and source is not None and 0 not in others:
        total, known = list(source), []
        for dim in others:  # what stands on both sides cancels: cheaper than asking the algebra
            if dim in total:
                total.remove(dim)
            else:
                known.append(dim)
        above, below = math.prod(total), math.prod(known)
        if isinstance(above, int) and isinstance(below, int):
            if above % below == 0:
                dims[rest] = above // below
        else:
            dims[rest] = settle(analysis.quotient(above, below))
    return dims


def _squeeze(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x, axes = node.inputs[0], _axes(analysis, node)
    if x.shape is None or axes is None:
        return put(node.outputs[0], None, x.dtype)
    dims = x.shape.dims
    if axes == ():
        if not x.shape.is_static():
            return put(node.outputs[0], None, x.dtype)  # a symbolic size of 1 would go too
        return put(node.outputs[0], [d for d in dims if d != 1], x.dtype)
    gone = {a % len(dims) for a in axes}
    return put(node.outputs[0], [d for i, d in enumerate(dims) if i not in gone], x.dtype)


def _unsqueeze(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x, axes = node.inputs[0], _axes(analysis, node)
    if x.shape is None or axes is None:
        return put(node.outputs[0], None, x.dtype)
    rank = x.shape.rank() + len(axes)
    new, old = {a % rank for a in axes}, iter(x.shape.dims)
    return put(node.outputs[0], [1 if i in new else next(old) for i in range(rank)], x.dtype)


def _axes(analysis: ShapeAnalysis, node: ir.Node, index: int = 1) -> tuple[int, ...] | None:
    """The axes of an operator, as attribute or as input; (): left out; None: not known."""
    given = node.attributes.get("axes")
    if given is not None:
        return tuple(given.as_ints())
    if len(node.inputs) <= index or node.inputs[index] is None:
        return ()
    found = analysis.elements(node.inputs[index])
    return tuple(found) if found is not None and all(isinstance(a, int) for a in found) else None  # type: ignore[arg-type]


def _concat(analysis: ShapeAnalysis, node: ir.Node) -> None:
    dtype = next((v.dtype for v in node.inputs if v.dtype is not None), None)
    shapes = [v.shape.dims for v in node.inputs if v.shape is not None]
    if len(shapes) != len(node.inputs) or any(len(s) != len(shapes[0]) for s in shapes):
        return put(node.outputs[0], None, dtype)
    axis = node.attributes["axis"].as_int() % len(shapes[0]) if "axis" in node.attributes else 1
    dims = [next((d for d in here if isinstance(d, int)), here[0]) for here in zip(*shapes)]
    dims[axis] = sum((s[axis] for s in shapes[1:]), shapes[0][axis])
    return put(node.outputs[0], dims, dtype)


def _split(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x, count = node.inputs[0], len(node.outputs)
    if x.shape is None:
        for value in node.outputs:
            put(value, None, x.dtype)
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    axis %= x.shape.rank()
    dim = x.shape.dims[axis]
    if "split" in node.attributes:
        sizes: Sequence[Element] = list(node.attributes["split"].as_ints())
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = analysis.elements(node.inputs[1]) or [None] * count
    elif count == 1:
        sizes = [dim]
    elif isinstance(dim, int):
        chunk = -(-dim // count)
        sizes = [max(0, min(chunk, dim - i * chunk)) for i in range(count)]
    else:
        sizes = [None] * count
    for value, size in zip(node.outputs, analysis.sizes(sizes)):
        put(value, [*x.shape.dims[:axis], size, *x.shape.dims[axis + 1 :]], x.dtype)


def _slice(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x = node.inputs[0]
    if x.shape is None:
        return put(node.outputs[0], None, x.dtype)
    dims = list(x.shape.dims)
    if len(node.inputs) == 1:
        starts, ends = (list(node.attributes[name].as_ints()) for name in ("starts", "ends"))
        axes = tuple(node.attributes["axes"].as_ints()) if "axes" in node.attributes else tuple(range(len(starts)))
        steps: Sequence[Element] = [1] * len(starts)
    else:
        given = list(node.inputs) + [None] * (5 - len(node.inputs))
        starts, ends = analysis.elements(given[1]), analysis.elements(given[2])
        length = next((v.shape[0] for v in given[1:] if v is not None and v.shape is not None and isinstance(v.shape[0], int)), None)
        axes = _axes(analysis, node, 3)
        if axes == () and length is not None:
            axes = tuple(range(length))
        if axes is None or length is None or len(axes) != length:
            return put(node.outputs[0], [analysis.fresh() for _ in dims], x.dtype)
        starts, ends = starts or [None] * length, ends or [None] * length
        steps = [1] * length if given[4] is None else analysis.elements(given[4]) or [None] * length
    for axis, start, end, step in zip(axes, starts, ends, steps):
        dims[axis] = _extent(analysis, dims[axis], start, end, step)
    return put(node.outputs[0], dims, x.dtype)


def _extent(analysis: ShapeAnalysis, dim: Size, start: Element, end: Element, step: Element) -> Size:
    """How much of an axis a slice takes."""
    if not isinstance(start, int) or not isinstance(step, int) or step == 0:
        return analysis.fresh()
    if isinstance(end, int) and isinstance(dim, int):
        return len(range(*slice(start, end, step).indices(dim)))
    if isinstance(dim, int) and isinstance(end, ir.SymbolicDim) and start == 0 and step == 1 and analysis.nonnegative(end):
        return analysis.smaller(dim, end)
    if step < 0 or isinstance(dim, int) or (start < 0 and -start < _FAR):
        whole = step == -1 and (start == -1 or start >= _FAR) and isinstance(end, int) and end <= -_FAR
        return dim if whole else analysis.fresh()
    if (isinstance(end, int) and end >= _FAR) or end == dim:
        taken = dim - start if start else dim
    elif isinstance(end, int) and end < 0:
        taken = dim + end - start
    else:
        return analysis.fresh()
    if taken is not dim:
        taken = analysis.at_least_zero(taken)
    return taken if step == 1 else settle(-((-taken) // step))


def _pad(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x = node.inputs[0]
    if x.shape is None:
        return put(node.outputs[0], None, x.dtype)
    given = node.attributes.get("pads") or node.attributes.get("paddings")
    rank = x.shape.rank()
    if given is not None:
        pads: Sequence[Element] | None = list(given.as_ints())
        axes: tuple[int, ...] | None = ()
    else:
        pads, axes = analysis.elements(node.inputs[1]), _axes(analysis, node, 3)
    if axes == ():
        axes = tuple(range(rank))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return put(node.outputs[0], [analysis.fresh() for _ in range(rank)], x.dtype)
    dims = list(x.shape.dims)
    for axis, before, after in zip(axes, pads, pads[len(axes) :]):
        dims[axis] = analysis.fresh() if before is None or after is None else settle(dims[axis] + before + after)
    return put(node.outputs[0], dims, x.dtype)


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


def _tile(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x = node.inputs[0]
    if x.shape is None or analysis.version(node) < 6:
        return put(node.outputs[0], None, x.dtype)
    repeats = analysis.elements(node.inputs[1]) or [None] * x.shape.rank()
    dims = [d if r == 1 else settle(d * s) for d, r, s in zip(x.shape.dims, repeats, analysis.sizes(repeats))]
    return put(node.outputs[0], dims if len(dims) == x.shape.rank() else None, x.dtype)


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
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_COMPARISONS.split(), _comparison),
    **dict.fromkeys(("Not", "IsNaN", "IsInf"), _predicate),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    "BatchNormalization": _batch_normalization,
    "Compress": _compress,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Einsum": _einsum,
    "Expand": _expand,
    "NonZero": _nonzero,
    "OneHot": _onehot,
    "Pad": _pad,
    "Pow": _power,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _topk,
    "Transpose": _transpose,
    "Unique": _unique,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
    "Where": _where,
}
