"""Blocks after whole pieces of real models: transformer layers, padded convolutions, exports with channels last, local functions."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from tests.fuzz import compute, movement
from tests.fuzz.build import CHANNELS, FAR, SIDE, WIDTH, Builder, V, elem_type


def transformer_layer(b: Builder) -> None:
    """Residual, normalization, two matrices with an activation between them, residual; before or after the normalization."""
    x = b.sequence()
    first = b.r.random() < 0.5
    y = compute.layer_norm_of(b, x) if first else x
    wide = b.node("MatMul", [y, b.weight(WIDTH, 2 * WIDTH)], (*x.dims[:2], 2 * WIDTH))
    wide = b.binary("Add", wide, b.weight(2 * WIDTH))
    wide = compute.activation_of(b, wide)
    y = b.node("MatMul", [wide, b.weight(2 * WIDTH, WIDTH)], x.dims)
    y = b.binary("Add", y, b.weight(WIDTH)) if b.r.random() < 0.8 else y
    y = b.binary("Add", x, y)
    b.keep(y if first else compute.layer_norm_of(b, y))


def gated(b: Builder) -> None:
    """The feed-forward of Llama: silu(x A) * (x B), then C."""
    x = b.sequence()
    y = compute.rms_norm_of(b, x)
    up, gate = (b.node("MatMul", [y, b.weight(WIDTH, 2 * WIDTH)], (*x.dims[:2], 2 * WIDTH)) for _ in range(2))
    gate = b.binary("Mul", gate, b.unary("Sigmoid", gate))
    b.keep(b.binary("Add", x, b.node("MatMul", [b.binary("Mul", gate, up), b.weight(2 * WIDTH, WIDTH)], x.dims)))


def embeddings(b: Builder) -> None:
    """Words, places and kinds added up and normalized."""
    ids = b.ids()
    x = b.node("Gather", [b.weight(WIDTH, WIDTH), ids], (*ids.dims, WIDTH), b.float)
    if b.r.random() < 0.6:
        kind = b.node("Gather", [b.weight(WIDTH, WIDTH), b.ids()], x.dims, b.float)
        x = b.binary("Add", x, kind)
    if b.static and b.r.random() < 0.7:
        places = b.constant(np.arange(ids.dims[1])[None])
        x = b.node("Add", [x, b.node("Gather", [b.weight(16, WIDTH), places], (1, ids.dims[1], WIDTH), b.float)], x.dims)
    b.keep(compute.layer_norm_of(b, x))


def one_token(b: Builder) -> None:
    """The first or the last token, and a head on it."""
    x = b.sequence()
    way = b.r.randrange(3)
    if way == 0:
        y = b.node("Gather", [x, b.constant(b.r.choice((0, -1)), "int64")], (x.dims[0], WIDTH), axis=1)
    elif way == 1:
        y = movement._slice(b, x, 1, 0, 1, 1)
        y = b.axes("Squeeze", y, [1], (x.dims[0], WIDTH))
    else:
        y = movement._slice(b, x, 1, -1, FAR, 1)
        y = b.node("Reshape", [y, b.ints(-1, WIDTH)], (x.dims[0], WIDTH))
    if b.r.random() < 0.6:
        y = b.unary("Tanh", b.node("Gemm", [y, b.weight(WIDTH, WIDTH), b.weight(WIDTH)], y.dims, transB=1))
    b.keep(y)


def padded(b: Builder) -> None:
    """Pad before Conv or pooling, by nothing, zeros, another number, or a reflection."""
    x = b.image()
    inputs, attributes = [x, b.ints(0, 0, 1, 1, 0, 0, 1, 1)], {}
    way = b.r.randrange(4)
    if way == 1:
        inputs.append(b.constant(b.r.choice((0.0, 1.0)), b.float))
    elif way == 2:
        attributes["mode"] = b.r.choice(("reflect", "edge"))
    y = b.node("Pad", inputs, (*x.dims[:2], SIDE + 2, SIDE + 2), **attributes)
    if b.r.random() < 0.7:
        made = [y, b.weight(CHANNELS, CHANNELS, 3, 3)]
        if b.r.random() < 0.5:
            made.append(b.weight(CHANNELS))
        b.keep(b.node("Conv", made, x.dims))
    else:
        b.keep(b.node(b.r.choice(("MaxPool", "AveragePool")), [y], x.dims, kernel_shape=[3, 3]))


def normalized_input(b: Builder) -> None:
    """(x - mean) / std, then a convolution with or without a border."""
    x = b.image()
    y = b.binary("Sub", x, b.weight(1, CHANNELS, 1, 1)) if b.r.random() < 0.8 else x
    if b.r.random() < 0.5:
        y = b.binary("Div", y, b.weight(1, CHANNELS, 1, 1, low=0.5))
    else:
        y = b.binary("Mul", y, b.scalar(b.r.choice((2.0, 1 / 255))))
    size, pad = b.r.choice(((1, 0), (3, 1), (3, 1)))
    b.keep(b.node("Conv", [y, b.weight(CHANNELS, CHANNELS, size, size), b.weight(CHANNELS)], x.dims, pads=[pad] * 4))


def channels_last(b: Builder) -> None:
    """A chain as tf2onnx writes it: every convolution between Transposes, what lies between them with channels last."""
    x = b.transpose(b.image(), 0, 2, 3, 1)
    start = x
    for _ in range(b.r.choice((1, 2, 3))):
        x = b.transpose(x, 0, 3, 1, 2)
        x = b.node("Conv", [x, b.weight(CHANNELS, CHANNELS, 3, 3)], x.dims, pads=[1] * 4)
        x = b.transpose(x, 0, 2, 3, 1)
        x = b.binary("Add", x, b.weight(CHANNELS)) if b.r.random() < 0.6 else x
        x = compute.activation_of(b, x) if b.r.random() < 0.6 else x
    if b.r.random() < 0.4:
        x = b.binary("Add", x, start)
    if b.r.random() < 0.3:
        x = b.node("Concat", [x, start], (*x.dims[:3], 2 * CHANNELS), axis=b.r.choice((3, -1)))
        x = movement._slice(b, x, 3, 0, CHANNELS, CHANNELS)
    if b.r.random() < 0.3:
        b.keep(b.mean(x, [1, 2], keep=False))
    b.keep(b.transpose(x, 0, 3, 1, 2))


def rearranged(b: Builder) -> None:
    """Depth to space and back, shuffled channels, windows: Reshape, Transpose, Reshape."""
    x = b.image()
    half = SIDE // 2
    n = x.dims[0]
    if b.r.random() < 0.4:
        y = b.node("Reshape", [x, b.ints(0, 2, 2, SIDE, SIDE)], (n, 2, 2, SIDE, SIDE))
        y = b.transpose(y, 0, 2, 1, 3, 4)
    else:
        y = b.node("Reshape", [x, b.ints(0, CHANNELS, half, 2, half, 2)], (n, CHANNELS, half, 2, half, 2))
        y = b.transpose(y, 0, *b.r.choice(((1, 3, 5, 2, 4), (3, 5, 1, 2, 4))))
        y = b.node("Reshape", [y, b.ints(0, 4 * CHANNELS, half, half)], (n, 4 * CHANNELS, half, half))
        y = b.binary("Mul", y, b.weight(4 * CHANNELS, 1, 1)) if b.r.random() < 0.4 else y
        y = b.node("Reshape", [y, b.ints(0, 2, 2, CHANNELS, half, half)], (n, 2, 2, CHANNELS, half, half))
        y = b.transpose(y, 0, *b.r.choice(((3, 4, 1, 5, 2), (3, 4, 2, 5, 1))))
    b.keep(b.node("Reshape", [y, b.ints(-1, CHANNELS, SIDE, SIDE)], x.dims))


def joined(b: Builder) -> None:
    """Values joined along the channels, normalized together, and mixed."""
    x, other = b.image(), b.image()
    y = b.node("Concat", [x, other], (x.dims[0], 2 * CHANNELS, SIDE, SIDE), axis=b.r.choice((1, -3)))
    if b.r.random() < 0.6:
        wide = 2 * CHANNELS
        y = b.node("BatchNormalization", [y, b.weight(wide), b.weight(wide), b.weight(wide), b.weight(wide, low=0.5)], y.dims)
    y = b.unary("Relu", y) if b.r.random() < 0.5 else y
    b.keep(b.node("Conv", [y, b.weight(CHANNELS, 2 * CHANNELS, 1, 1)], x.dims))


def einsum(b: Builder) -> None:
    x = b.sequence()
    equation, w, dims = b.r.choice((
        ("nsd,de->nse", b.weight(WIDTH, WIDTH), x.dims), ("nsd,ed->nse", b.weight(WIDTH, WIDTH), x.dims),
        ("nsd,nsd->ns", None, x.dims[:2]), ("nsd->nds", False, (x.dims[0], WIDTH, x.dims[1])),
    ))
    inputs = [x] if w is False else [x, w if w is not None else x]
    b.keep(b.node("Einsum", inputs, dims, equation=equation))


def pooled_head(b: Builder) -> None:
    """A classifier's end: the mean over the picture, its dimensions dropped, and a matrix with a bias."""
    x = b.image()
    channels = x.dims[1]
    keep = b.r.random() < 0.7
    y = b.mean(x, [2, 3], keep=keep, kind=b.r.choice(("ReduceMean", "ReduceMax")))
    if keep:
        flat = (x.dims[0], channels)
        way = b.r.randrange(3)
        if way == 0:
            y = b.node("Flatten", [y], flat)
        else:
            y = b.node("Reshape", [y, b.ints(0, channels)], flat) if way == 1 else b.axes("Squeeze", y, [2, 3], flat)
    y = b.node("MatMul", [y, b.weight(channels, WIDTH)], (x.dims[0], WIDTH))
    b.keep(b.binary("Add", y, b.weight(WIDTH)))


def narrow_weights(b: Builder) -> None:
    """A weight stored in eight bits: dequantized, or cast, shifted and scaled."""
    x = b.sequence()
    numbers = np.random.default_rng(b.r.randrange(1 << 30))
    stored = b.constant(numbers.integers(-100, 100, (WIDTH, WIDTH)).astype(np.int8))
    if b.r.random() < 0.5 and b.float == "float32" and b.opset >= 13:
        scale, zero = b.constant(np.float32(0.01)), b.constant(np.int8(b.r.choice((0, 3))))
        w = b.node("DequantizeLinear", [stored, scale, zero], (WIDTH, WIDTH), b.float)
    else:
        w = b.node("Cast", [stored], (WIDTH, WIDTH), b.float, to=elem_type(b.float))
        w = b.binary("Mul", b.binary("Sub", w, b.constant(3.0, b.float)), b.constant(0.01, b.float))
    b.keep(b.node("MatMul", [x, w], x.dims))


def sequences(b: Builder) -> None:
    """torch.split as the exporter writes it, as a sequence of tensors."""
    x = b.sequence()
    name = b.fresh()
    b.nodes.append(helper.make_node("SplitToSequence", [x.name, b.constant(WIDTH // 2, "int64").name], [name], axis=b.r.choice((2, -1))))
    parts = []
    for i in (0, 1):
        part = V(b.fresh(), x.dtype, (*x.dims[:2], WIDTH // 2))
        b.nodes.append(helper.make_node("SequenceAt", [name, b.constant(i, "int64").name], [part.name]))
        parts.append(part)
    b.keep(b.node("Concat", [b.unary("Neg", parts[1]), parts[0]], x.dims, axis=-1))


def repeated(b: Builder) -> None:
    """Key and value heads repeated for several queries: Unsqueeze, Expand, Reshape; or Tile."""
    x = b.sequence()
    if b.r.random() < 0.5:
        y = b.axes("Unsqueeze", x, [2], (*x.dims[:2], 1, WIDTH))
        y = b.node("Expand", [y, b.ints(1, 1, 2, WIDTH)], (*x.dims[:2], 2, WIDTH))
        y = b.node("Reshape", [y, b.ints(0, 0, 2 * WIDTH)], (*x.dims[:2], 2 * WIDTH))
    else:
        y = b.node("Tile", [x, b.ints(1, 1, 2)], (*x.dims[:2], 2 * WIDTH))
    b.keep(b.node("MatMul", [y, b.weight(2 * WIDTH, WIDTH)], x.dims))


def filled_constants(b: Builder) -> None:
    """Constants that are computed: Expand, ConstantOfShape, Range, Cast, Transpose of constants."""
    x = b.sequence()
    way = b.r.randrange(4)
    if way == 0:
        c = b.node("Expand", [b.constant([0.5], b.float), b.ints(WIDTH)], (WIDTH,))
    elif way == 1:
        value = numpy_helper.from_array(np.asarray([2.0], b.float))
        c = b.node("ConstantOfShape", [b.ints(1, WIDTH)], (1, WIDTH), b.float, value=value)
    elif way == 2:
        c = b.node("Range", [b.constant(0, "int64"), b.constant(WIDTH, "int64"), b.constant(1, "int64")], (WIDTH,))
        c = b.node("Cast", [c], (WIDTH,), b.float, to=elem_type(b.float))
    else:
        c = b.unary(b.r.choice(("Exp", "Neg", "Sqrt", "Sigmoid")), b.weight(WIDTH, low=0.5))
    b.keep(b.binary(b.r.choice(("Add", "Mul")), x, c))


BLOCKS = {
    transformer_layer: 4, gated: 2, embeddings: 2, one_token: 3, padded: 3, normalized_input: 2, channels_last: 4, rearranged: 3, joined: 2,
    einsum: 1, pooled_head: 2, narrow_weights: 2, sequences: 1, repeated: 1, filled_constants: 2,
}
NO_DOUBLE = (padded, normalized_input, channels_last, joined, einsum)
