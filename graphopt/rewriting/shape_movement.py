"""Shapes of the operators that move elements about, and how shapes broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

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


def _transpose(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x = node.inputs[0]
    perm = node.attributes.get("perm")
    dims = None
    if x.shape is not None:
        order = list(perm.as_ints()) if perm is not None else list(range(x.shape.rank()))[::-1]
        if sorted(order) == list(range(x.shape.rank())):
            dims = [x.shape.dims[i] for i in order]
    put(node.outputs[0], dims, x.dtype)


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


def _tile(analysis: ShapeAnalysis, node: ir.Node) -> None:
    x = node.inputs[0]
    if x.shape is None or analysis.version(node) < 6:
        return put(node.outputs[0], None, x.dtype)
    repeats = analysis.elements(node.inputs[1]) or [None] * x.shape.rank()
    dims = [d if r == 1 else settle(d * s) for d, r, s in zip(x.shape.dims, repeats, analysis.sizes(repeats))]
    return put(node.outputs[0], dims if len(dims) == x.shape.rank() else None, x.dtype)


MOVEMENT: dict[str, Callable[[ShapeAnalysis, ir.Node], None]] = {
    "Concat": _concat,
    "Expand": _expand,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
