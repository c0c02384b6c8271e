"""Blocks that move elements about, compute shapes, do nothing at length, or work on whole numbers."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from tests.fuzz.build import CHANNELS, FAR, SIDE, WIDTH, Builder, V, elem_type
from tests.fuzz.compute import activation_of


def nhwc(b: Builder) -> None:
    """Transposes to channels last and back, with something that does not mind between them."""
    x = b.image()
    y = b.transpose(x, 0, 2, 3, 1)
    way = b.r.randrange(5)
    if way == 0:
        y = activation_of(b, y)
    elif way == 1:
        y = b.binary("Add", b.binary("Mul", y, b.weight(CHANNELS)), b.weight(CHANNELS))
    elif way == 2:
        y = b.node("Pad", [y, b.ints(0, 1, 1, 0, 0, 0, 0, 0)], (y.dims[0], SIDE + 1, SIDE + 1, CHANNELS))
        y = _slice(b, _slice(b, y, 1, 1, FAR, SIDE), 2, 0, -1, SIDE)
    elif way == 3:
        other = b.transpose(b.image(), 0, 2, 3, 1)
        y = b.binary("Add", y, other)
    else:
        y = b.mean(y, [1, 2])
        y = b.binary("Mul", b.transpose(x, 0, 2, 3, 1), y)
    b.keep(b.transpose(y, 0, 3, 1, 2))


def transposes(b: Builder) -> None:
    x = b.any()
    for _ in range(b.r.choice((1, 2, 3))):
        perm = list(range(len(x.dims)))
        b.r.shuffle(perm)
        x = b.transpose(x, *perm)
        if b.r.random() < 0.3:
            x = b.unary(b.r.choice(("Relu", "Neg", "Identity")), x)
    b.keep(x)


def reshapes(b: Builder) -> None:
    """There and back, through constants, Flatten, Squeeze and Unsqueeze."""
    x = b.image() if b.r.random() < 0.5 else b.sequence()
    way = b.r.randrange(4)
    if len(x.dims) == 4:
        back = b.ints(*b.r.choice(((0, CHANNELS, SIDE, SIDE), (-1, CHANNELS, SIDE, SIDE), (0, -1, SIDE, SIDE))))
        if way == 0:
            y = b.node("Flatten", [x], (x.dims[0], CHANNELS * SIDE * SIDE))
            back = b.ints(-1, CHANNELS, SIDE, SIDE)
        else:
            y = b.node("Reshape", [x, b.ints(0, CHANNELS, -1)], (x.dims[0], CHANNELS, SIDE * SIDE))
            if way == 1:
                y = activation_of(b, y)
            elif way == 2:
                y = b.transpose(b.transpose(y, 0, 2, 1), 0, 2, 1)
            elif way == 3:
                y = b.binary("Mul", y, b.weight(CHANNELS, 1))
        b.keep(b.node("Reshape", [y, back], x.dims))
    else:
        axis = b.r.choice((0, 1, 2, 3, -1))
        place = axis % 4
        y = b.axes("Unsqueeze", x, [axis], (*x.dims[:place], 1, *x.dims[place:]))
        y = b.unary(b.r.choice(("Relu", "Identity", "Neg")), y) if way else y
        b.keep(b.axes("Squeeze", y, [axis], x.dims))


def _slice(b: Builder, x: V, axis: int, start: int, end: int, size: int | str, step: int = 1) -> V:
    dims = (*x.dims[:axis], size, *x.dims[axis + 1 :])
    inputs = [x, b.ints(start), b.ints(end), b.ints(axis if b.r.random() < 0.7 else axis - len(x.dims))]
    if step != 1 or b.r.random() < 0.3:
        inputs.append(b.ints(step))
    return b.node("Slice", inputs, dims)


def slices(b: Builder) -> None:
    """Parts of an axis that are put together again, in one order or another."""
    x = b.image() if b.r.random() < 0.5 else b.sequence()
    axis = 1 if len(x.dims) == 4 else 2
    size = x.dims[axis]
    way = b.r.randrange(4)
    if way == 0:
        parts = [_slice(b, x, axis, 0, size // 2, size // 2), _slice(b, x, axis, size // 2, FAR, size // 2)]
    elif way == 1:
        half = (*x.dims[:axis], size // 2, *x.dims[axis + 1 :])
        inputs = [x, b.ints(size // 2, size // 2)] if b.opset >= 13 and b.r.random() < 0.7 else [x]
        attributes = {"num_outputs": 2} if b.opset >= 18 and len(inputs) == 1 else {}
        parts = b.split("Split", inputs, [half, half], axis=axis, **attributes)
    elif way == 2:
        quarter = [_slice(b, x, axis, i, i + 1, 1) for i in range(size)]
        parts = [_slice(b, x, axis, 0, FAR, size)] if b.r.random() < 0.3 else quarter
    else:
        order = list(range(size))
        if b.r.random() < 0.6:
            b.r.shuffle(order)
        parts = [b.node("Gather", [x, b.ints(*order)], x.dims, axis=axis)]
    if b.r.random() < 0.4:
        parts = [activation_of(b, p) if b.r.random() < 0.5 else p for p in parts]
    if len(parts) > 1 and b.r.random() < 0.3:
        b.r.shuffle(parts)
    total = sum(p.dims[axis] for p in parts)
    if len(parts) == 1 and b.r.random() < 0.5:
        return b.keep(parts[0])
    return b.keep(b.node("Concat", parts, (*x.dims[:axis], total, *x.dims[axis + 1 :]), axis=axis))


def slice_chain(b: Builder) -> None:
    x = b.image()
    y = _slice(b, x, 2, 1, FAR, SIDE - 1)
    y = _slice(b, y, *b.r.choice(((3, 0, 4, 4), (2, 0, 3, 3), (3, -2, FAR, 2), (2, 1, -1, SIDE - 3))))
    y = b.transpose(y, 0, 2, 3, 1) if b.r.random() < 0.3 else y
    b.keep(y)


def noops(b: Builder) -> None:
    x = b.any()
    for _ in range(b.r.choice((1, 2, 3))):
        x = b.r.choice((_identity, _cast, _neutral, _pad_nothing, _all_of_it, _same_shape, _dropout, _gather_all))(b, x)
    b.keep(x)


def _identity(b: Builder, x: V) -> V:
    return b.unary("Identity", x)


def _cast(b: Builder, x: V) -> V:
    if b.r.random() < 0.3 and x.dtype == "float32":
        x = b.node("Cast", [x], x.dims, "float64", to=elem_type("float64"))
        return b.node("Cast", [x], x.dims, "float32", to=elem_type("float32"))
    return b.node("Cast", [x], x.dims, to=elem_type(x.dtype))


def _neutral(b: Builder, x: V) -> V:
    kind, number = b.r.choice((("Mul", 1), ("Div", 1), ("Add", 0), ("Sub", 0), ("Pow", 1), ("Add", -0.0)))
    return b.binary(kind, x, b.constant(number, b.float))


def _pad_nothing(b: Builder, x: V) -> V:
    return b.node("Pad", [x, b.ints(*[0] * (2 * len(x.dims)))], x.dims)


def _all_of_it(b: Builder, x: V) -> V:
    axis = b.r.randrange(len(x.dims)) if x.dims else 0
    if not x.dims:
        return x
    if b.r.random() < 0.5:
        return _slice(b, x, axis, 0, FAR, x.dims[axis])
    return b.node("Concat", [x], x.dims, axis=axis)


def _same_shape(b: Builder, x: V) -> V:
    way = b.r.randrange(3)
    if way == 0:
        return b.transpose(x, *range(len(x.dims)))
    if way == 1:
        return b.node("Reshape", [x, b.node("Shape", [x], (len(x.dims),), "int64")], x.dims)
    return b.node("Expand", [x, b.node("Shape", [x], (len(x.dims),), "int64")], x.dims)


def _dropout(b: Builder, x: V) -> V:
    return b.node("Dropout", [x], x.dims) if b.opset >= 12 else b.node("Dropout", [x], x.dims, ratio=0.5)


def _gather_all(b: Builder, x: V) -> V:
    places = [i for i, d in enumerate(x.dims) if isinstance(d, int)]
    if not places:
        return x
    axis = b.r.choice(places)
    return b.node("Gather", [x, b.ints(*range(x.dims[axis]))], x.dims, axis=axis)


# --- shapes -----------------------------------------------------------------------------------------------------------


def shape_arithmetic(b: Builder) -> None:
    x = b.sequence() if b.r.random() < 0.7 else b.image()
    b.keep(b.r.choice((_flatten_by_shape, _expanded, _filled, _positions, _heads, _resized))(b, x))


def _size(b: Builder, x: V, axis: int, vector: bool = True) -> V:
    """The size of one axis, as a vector of one element or a scalar."""
    if b.opset >= 15 and b.r.random() < 0.3 and vector:
        return b.node("Shape", [x], (1,), "int64", start=axis, end=axis + 1)
    shape = b.node("Shape", [x], (len(x.dims),), "int64")
    if vector and b.r.random() < 0.3:
        return b.node("Slice", [shape, b.ints(axis), b.ints(axis + 1), b.ints(0)], (1,))
    size = b.node("Gather", [shape, b.constant(axis, "int64")], (), axis=0)
    if b.r.random() < 0.3:
        size = b.node("Cast", [b.node("Cast", [size], (), "int32", to=elem_type("int32"))], (), "int64", to=elem_type("int64"))
    return b.axes("Unsqueeze", size, [0], (1,)) if vector else size


def _flatten_by_shape(b: Builder, x: V) -> V:
    rest = b.ints(-1) if b.r.random() < 0.6 else b.ints(int(np.prod(x.dims[2:])))
    target = b.node("Concat", [_size(b, x, 0), _size(b, x, 1), rest], (3,), axis=0)
    if b.r.random() < 0.3:
        minus = b.node("Equal", [target, b.ints(-1)], (3,), "bool")
        target = b.node("Where", [minus, b.ints(-1, -1, -1), target], (3,), "int64")
    return b.node("Reshape", [x, target], (*x.dims[:2], int(np.prod(x.dims[2:]))))


def _heads(b: Builder, x: V) -> V:
    x = b.sequence()
    if b.r.random() < 0.5:
        width = b.node("Div", [_size(b, x, 2), b.ints(2)], (1,))
        target = b.node("Concat", [_size(b, x, 0), _size(b, x, 1), b.ints(2), width], (4,), axis=0)
    else:
        target = b.node("Concat", [_size(b, x, 0), b.ints(-1, 2, WIDTH // 2)], (4,), axis=0)
    y = b.node("Reshape", [x, target], (*x.dims[:2], 2, WIDTH // 2))
    y = b.transpose(y, 0, 2, 1, 3)
    y = b.transpose(y, 0, 2, 1, 3)
    return b.node("Reshape", [y, b.ints(0, 0, WIDTH)], x.dims)


def _expanded(b: Builder, x: V) -> V:
    row = b.weight(1, *([1] * (len(x.dims) - 2)), x.dims[-1]) if isinstance(x.dims[-1], int) else b.weight(1)
    target = b.node("Shape", [x], (len(x.dims),), "int64")
    if b.r.random() < 0.5:  # as torch writes expand
        filled = b.node("ConstantOfShape", [b.ints(len(x.dims))], (len(x.dims),), "int64", value=numpy_helper.from_array(np.asarray([1])))
        minus = b.node("Equal", [target, b.ints(-1)], target.dims, "bool")
        target = b.node("Where", [minus, filled, target], target.dims, "int64")
    return b.binary("Add", x, b.node("Expand", [row, target], x.dims))


def _filled(b: Builder, x: V) -> V:
    value = numpy_helper.from_array(np.asarray([b.r.choice((0.0, 1.0, 0.5))], b.float))
    shape = b.node("Shape", [x], (len(x.dims),), "int64")
    return b.binary(b.r.choice(("Add", "Mul")), x, b.node("ConstantOfShape", [shape], x.dims, b.float, value=value))


def _positions(b: Builder, x: V) -> V:
    x = b.sequence()
    count = _size(b, x, 1, vector=False)
    places = b.node("Range", [b.constant(0, "int64"), count, b.constant(1, "int64")], (x.dims[1],), "int64")
    rows = b.node("Gather", [b.weight(16, WIDTH), places], (x.dims[1], WIDTH), b.float, axis=0)
    return b.node("Add", [x, rows], x.dims)


def _resized(b: Builder, x: V) -> V:
    x = b.image()
    if b.float == "float64" or b.opset < 13:
        return b.unary("Relu", x)
    scales = b.constant(np.asarray([1, 1, 2, 2], np.float32)) if b.r.random() < 0.7 else b.constant(np.ones(4, np.float32))
    scale = 2 if scales.name in b.weights and b.weights[scales.name][2] == 2 else None
    if scale is None:
        scales = b.constant(np.asarray([1, 1, 2, 2], np.float32))
    y = b.node("Resize", [x, None, scales], (*x.dims[:2], 2 * SIDE, 2 * SIDE), mode="nearest",
               coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return b.node("MaxPool", [y], x.dims, kernel_shape=[2, 2], strides=[2, 2])


# --- whole numbers ----------------------------------------------------------------------------------------------------


def embedding(b: Builder) -> None:
    ids = b.ids()
    x = b.node("Gather", [b.weight(WIDTH, WIDTH), ids], (*ids.dims, WIDTH), b.float)
    if b.r.random() < 0.5:
        mask = b.node("Equal", [ids, b.constant(0, "int64")], ids.dims, "bool")
        mask = b.unary("Not", b.unary("Not", mask)) if b.r.random() < 0.3 else mask
        wide = b.axes("Unsqueeze", mask, [-1], (*ids.dims, 1))
        if b.r.random() < 0.5:
            x = b.node("Where", [wide, b.constant(0.0, b.float), x], x.dims, b.float)
        else:
            wide = b.unary("Not", wide) if b.r.random() < 0.5 else wide
            x = b.binary("Mul", x, b.node("Cast", [wide], wide.dims, b.float, to=elem_type(b.float)))
    b.keep(x)


def integers(b: Builder) -> None:
    found = [v for v in b.values if v.dtype in ("int64", "int32")]
    x = b.r.choice(found) if found else b.ids()
    for _ in range(b.r.choice((1, 2, 3))):
        kind = b.r.choice(("Add", "Mul", "Sub", "Div", "Cast", "Neg", "Max"))
        if kind == "Cast":
            to = b.r.choice(("int32", "int64"))
            x = b.node("Cast", [x], x.dims, to, to=elem_type(to))
        elif kind == "Neg":
            x = b.unary("Neg", x)
        elif b.opset < 12 and kind == "Max":
            continue
        else:
            x = b.node(kind, [x, b.constant(b.r.choice((1, 2, 3)), x.dtype)], x.dims)
    b.keep(x)


def logic(b: Builder) -> None:
    x = b.any()
    a = b.node("Greater", [x, b.constant(0.25, b.float)], x.dims, "bool")
    c = b.node("Less", [x, b.constant(-0.25, b.float)], x.dims, "bool")
    mask = b.node(b.r.choice(("And", "Or", "Xor")), [a, c], x.dims)
    mask = b.unary("Not", mask) if b.r.random() < 0.5 else mask
    other = b.constant(b.r.choice((0.0, -1.0)), b.float)
    y = b.node("Where", [mask, x, other] if b.r.random() < 0.5 else [mask, other, x], x.dims, b.float)
    b.keep(y)


def scatter(b: Builder) -> None:
    x = b.sequence()
    if b.float == "float16":
        return b.keep(b.unary("Relu", x))
    places = b.constant(np.asarray([[0]]))
    picked = b.node("GatherND", [x, places], (1, *x.dims[1:]), b.float)
    if b.r.random() < 0.5 or not b.static:
        return b.keep(picked)
    updates = b.unary("Neg", picked)
    return b.keep(b.node("ScatterND", [x, places, updates], x.dims, b.float))


BLOCKS = {
    nhwc: 4, transposes: 4, reshapes: 4, slices: 5, slice_chain: 2, noops: 6, shape_arithmetic: 6, embedding: 3, integers: 2, logic: 2,
    scatter: 1,
}
