"""The elements of integer and boolean vectors that shapes determine: Shape, and the arithmetic that is done on it.

An element is a number, an expression over dimensions, or None where it is not known. Only vectors and scalars of int64,
int32 and bool are followed, and short ones: longer vectors are data.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

if TYPE_CHECKING:
    from graphopt.rewriting.shapes import ShapeAnalysis

Element: TypeAlias = int | ir.SymbolicDim | None

LIMIT = 64  # elements
TYPES = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
_RANGES = {ir.DataType.INT64: 1 << 63, ir.DataType.INT32: 1 << 31}


def elements_of(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    """The elements of the first output of `node`, whose type and shape are inferred already; None: nothing is known."""
    output = node.outputs[0]
    rule = RULES.get(node.op_type)
    if rule is None or output.dtype not in TYPES or output.shape is None or output.shape.rank() > 1:
        return None
    length = output.shape[0] if output.shape.rank() else 1
    if not isinstance(length, int) or length > LIMIT:
        return None
    found = rule(analysis, node)
    if found is None or len(found) != length or all(e is None for e in found):
        return None
    limit = _RANGES.get(output.dtype)
    if limit is not None and any(isinstance(e, int) and not -limit <= e < limit for e in found):
        return None  # the operator wraps around
    return found


# --- rules ----------------------------------------------------------------------------------------------------------


def _shape(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    shape = node.inputs[0].shape
    if shape is None:
        return None
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    return list(shape.dims[start.as_int() if start is not None else 0 : end.as_int() if end is not None else None])


def _size(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    shape = node.inputs[0].shape
    return None if shape is None else [_product(shape.dims)]


def _same(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    return analysis.elements(node.inputs[0])


def _cast(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    found = analysis.elements(node.inputs[0])
    if found is None or node.outputs[0].dtype != ir.DataType.BOOL:
        return found
    return [int(e != 0) if isinstance(e, int) else None for e in found]


def _gather(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    data, indices = analysis.elements(node.inputs[0]), analysis.elements(node.inputs[1])
    if data is None or indices is None or node.inputs[0].shape.rank() != 1:
        return None
    return [data[i] if isinstance(i, int) and -len(data) <= i < len(data) else None for i in indices]


def _slice(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    data = analysis.elements(node.inputs[0])
    if data is None or node.inputs[0].shape.rank() != 1:
        return None
    if len(node.inputs) == 1:
        bounds = [list(node.attributes[name].as_ints()) for name in ("starts", "ends")]
    else:
        bounds = [analysis.elements(v) for v in node.inputs[1:3]]
    step: list[Element] | None = [1]
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        step = analysis.elements(node.inputs[4])
    if any(b is None or len(b) != 1 or not isinstance(b[0], int) for b in (*bounds, step)) or step == [0]:
        return None
    return data[bounds[0][0] : bounds[1][0] : step[0]]  # Python clamps as the operator does


def _concat(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    result: list[Element] = []
    for value in node.inputs:
        length = value.shape[0] if value.shape is not None and value.shape.rank() == 1 else None
        if not isinstance(length, int) or length > LIMIT:
            return None
        result.extend(analysis.elements(value) or [None] * length)
    return result


def _split(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    return None  # its outputs are handled by `split_elements`


def split_elements(analysis: ShapeAnalysis, node: ir.Node) -> list[list[Element]] | None:
    """The elements of all outputs of a Split of a vector."""
    data = analysis.elements(node.inputs[0])
    if data is None or node.inputs[0].shape.rank() != 1:
        return None
    parts, start = [], 0
    for output in node.outputs:
        length = output.shape[0] if output.shape is not None else None
        if not isinstance(length, int):
            return None
        parts.append(data[start : start + length])
        start += length
    return parts if start == len(data) else None


def _binary(function: Callable[[ShapeAnalysis, Element, Element], Element]):
    def rule(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
        values = [analysis.elements(v) for v in node.inputs]
        length = node.outputs[0].shape[0] if node.outputs[0].shape.rank() else 1
        known = [v * length if v is not None and len(v) == 1 else v for v in values]
        if any(v is None or len(v) != length for v in known):
            return None
        result = known[0]
        for other in known[1:]:
            result = [function(analysis, a, b) for a, b in zip(result, other)]
        return result

    return rule


def _arithmetic(function: Callable[[int, int], int]):
    def apply(analysis: ShapeAnalysis, a: Element, b: Element) -> Element:
        return None if a is None or b is None else settle(function(a, b))

    return apply


def _divide(analysis: ShapeAnalysis, a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            return None
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    if b == 1:
        return a
    if a is None or not isinstance(b, int) or b <= 0 or not analysis.nonnegative(a):
        return None
    return settle(a // b)


def _modulo(analysis: ShapeAnalysis, a: Element, b: Element) -> Element:
    return a % b if isinstance(a, int) and isinstance(b, int) and b > 0 and a >= 0 else None


def _extreme(function: Callable[..., int]):
    def apply(analysis: ShapeAnalysis, a: Element, b: Element) -> Element:
        if isinstance(a, int) and isinstance(b, int):
            return function(a, b)
        if a is not None and a == b:
            return a
        low, high = (a, b) if isinstance(a, int) else (b, a)
        if isinstance(low, int) and low <= 0 and high is not None and analysis.nonnegative(high):
            return high if function is max else low
        return None

    return apply


def _equal(analysis: ShapeAnalysis, a: Element, b: Element) -> Element:
    if a is None or b is None:
        return None
    if a == b:
        return 1
    if isinstance(a, int) and isinstance(b, int):
        return 0
    number, dim = (a, b) if isinstance(a, int) else (b, a)
    return 0 if isinstance(number, int) and number < 0 and analysis.nonnegative(dim) else None


def _compare(function: Callable[[int, int], bool]):
    def apply(analysis: ShapeAnalysis, a: Element, b: Element) -> Element:
        return int(function(a, b)) if isinstance(a, int) and isinstance(b, int) else None

    return apply


def _unary(function: Callable[[int], int], symbolic: bool = False):
    def rule(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
        found = analysis.elements(node.inputs[0])
        if found is None:
            return None
        return [settle(function(e)) if isinstance(e, int) or (symbolic and e is not None) else None for e in found]

    return rule


def _where(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    length = node.outputs[0].shape[0] if node.outputs[0].shape.rank() else 1
    condition, x, y = ((v * length if v is not None and len(v) == 1 else v) or [None] * length for v in map(analysis.elements, node.inputs))
    if not len(condition) == len(x) == len(y) == length:
        return None
    return [(a if c else b) if c is not None else (a if a is not None and a == b else None) for c, a, b in zip(condition, x, y)]


def _constant_of_shape(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    length = node.outputs[0].shape[0] if node.outputs[0].shape.rank() else 1
    fill = node.attributes.get("value")
    return None if fill is None else [int(fill.as_tensor().numpy().reshape(-1)[0])] * length


def _expand(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    found = analysis.elements(node.inputs[0])
    length = node.outputs[0].shape[0] if node.outputs[0].shape.rank() else 1
    return found * length if found is not None and len(found) == 1 else found


def _range(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
    bounds = [analysis.elements(v) for v in node.inputs]
    if any(b is None or len(b) != 1 or not isinstance(b[0], int) for b in bounds) or bounds[2] == [0]:
        return None
    return list(range(bounds[0][0], bounds[1][0], bounds[2][0]))


def _reduce(function: Callable[[Sequence[int | ir.SymbolicDim]], Element]):
    def rule(analysis: ShapeAnalysis, node: ir.Node) -> list[Element] | None:
        found = analysis.elements(node.inputs[0])
        noop = node.attributes.get("noop_with_empty_axes")
        if found is None or any(e is None for e in found) or node.inputs[0].shape.rank() != 1 or (noop is not None and noop.as_int()):
            return None
        return [function(found)]

    return rule


def _sum(values: Sequence[int | ir.SymbolicDim]) -> Element:
    total: int | ir.SymbolicDim = 0
    for value in values:
        total = total + value
    return settle(total)


def _product(values: Sequence[int | ir.SymbolicDim]) -> Element:
    total: int | ir.SymbolicDim = 1
    for value in values:
        total = total * value
    return settle(total)


def settle(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    """An expression that came to a number is that number."""
    if isinstance(dim, int):
        return dim
    text = dim.value or ""
    return int(text) if text.lstrip("-").isdigit() else dim


RULES: dict[str, Callable[[ShapeAnalysis, ir.Node], list[Element] | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Squeeze": _same,
    "Unsqueeze": _same,
    "Reshape": _same,
    "Flatten": _same,
    "Transpose": _same,
    "Cast": _cast,
    "CastLike": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    "Add": _binary(_arithmetic(operator.add)),
    "Sub": _binary(_arithmetic(operator.sub)),
    "Mul": _binary(_arithmetic(operator.mul)),
    "Sum": _binary(_arithmetic(operator.add)),
    "Div": _binary(_divide),
    "Mod": _binary(_modulo),
    "Max": _binary(_extreme(max)),
    "Min": _binary(_extreme(min)),
    "Equal": _binary(_equal),
    "Less": _binary(_compare(operator.lt)),
    "LessOrEqual": _binary(_compare(operator.le)),
    "Greater": _binary(_compare(operator.gt)),
    "GreaterOrEqual": _binary(_compare(operator.ge)),
    "And": _binary(_compare(lambda a, b: bool(a and b))),
    "Or": _binary(_compare(lambda a, b: bool(a or b))),
    "Not": _unary(lambda e: int(not e)),
    "Neg": _unary(operator.neg, symbolic=True),
    "Abs": _unary(abs),
    "Where": _where,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Range": _range,
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(_sum),
}
