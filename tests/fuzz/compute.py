"""Blocks that compute: linear operators, affine arithmetic, activations and normalizations as exporters spell them out."""

from __future__ import annotations

from tests.fuzz.build import CHANNELS, SIDE, WIDTH, Builder, V

NUMBERS = (0.0, -0.0, 1.0, 1.0, 1.000009, -0.5, 2.0, 3.0, 6.0, 0.125)


def conv(b: Builder) -> None:
    x = b.image()
    for _ in range(b.r.choice((1, 1, 2))):
        x = _conv(b, x)
        if b.r.random() < 0.5:
            x = _batchnorm(b, x)
        if b.r.random() < 0.3:
            x = _affine(b, x)
        if b.r.random() < 0.6:
            x = activation_of(b, x)
        b.keep(x)


def _conv(b: Builder, x: V, size: int | None = None) -> V:
    size, groups = size or b.r.choice((1, 3)), b.r.choice((1, 1, 2, 4))
    inputs = [x, b.weight(CHANNELS, CHANNELS // groups, size, size)]
    if b.r.random() < 0.6:
        inputs.append(b.weight(CHANNELS) if b.r.random() < 0.8 else None)
    attributes = {"group": groups} if groups > 1 or b.r.random() < 0.5 else {}
    if b.r.random() < 0.2:
        return b.node("Conv", inputs, x.dims, auto_pad="SAME_UPPER", **attributes)
    dilation = b.r.choice((1, 1, 2)) if size == 3 else 1
    return b.node("Conv", inputs, x.dims, pads=[size // 2 * dilation] * 4, dilations=[dilation] * 2, **attributes)


def _batchnorm(b: Builder, x: V) -> V:
    parameters = [b.weight(CHANNELS), b.weight(CHANNELS), b.weight(CHANNELS), b.weight(CHANNELS, low=0.5)]
    return b.node("BatchNormalization", [x, *parameters], x.dims, epsilon=b.r.choice((1e-5, 1e-3)))


def conv_transpose(b: Builder) -> None:
    x = b.image()
    y = b.node("ConvTranspose", [x, b.weight(CHANNELS, CHANNELS, 1, 1)], x.dims)
    b.keep(_batchnorm(b, y) if b.r.random() < 0.5 else _affine(b, y))


def parallel(b: Builder) -> None:
    """Branches over one input: RepVGG blocks, parallel convolutions, parallel matrix products."""
    if b.r.random() < 0.5:
        x = b.image()
        branches = [_conv(b, x, size) for size in b.r.choice(((1, 3), (1, 1), (3, 3, 1)))]
        if b.r.random() < 0.6:
            branches = [_batchnorm(b, v) for v in branches]
        if b.r.random() < 0.3:
            branches.append(_batchnorm(b, x) if b.r.random() < 0.7 else x)
    else:
        x = b.sequence()
        branches = [linear_of(b, x) for _ in range(b.r.choice((2, 3)))]
    if b.r.random() < 0.7:
        total = branches[0]
        for other in branches[1:]:
            total = b.binary("Add", total, other)
        b.keep(activation_of(b, total) if b.r.random() < 0.5 else total)
    else:
        b.keep(*branches)


def linear(b: Builder) -> None:
    x = b.sequence()
    for _ in range(b.r.choice((1, 2))):
        x = linear_of(b, x)
        if b.r.random() < 0.3:
            x = _affine(b, x)
        if b.r.random() < 0.5:
            x = activation_of(b, x)
    b.keep(x)


def linear_of(b: Builder, x: V) -> V:
    """x @ W (+ bias), W stored transposed at times."""
    w = b.weight(WIDTH, WIDTH)
    if b.r.random() < 0.2:
        w = b.transpose(w, 1, 0)
    x = b.node("MatMul", [x, w], x.dims)
    return b.binary("Add", x, b.weight(WIDTH)) if b.r.random() < 0.7 else x


def gemm(b: Builder) -> None:
    x = b.mean(b.sequence(), [1], keep=False)
    for _ in range(b.r.choice((1, 2))):
        attributes = {}
        if b.r.random() < 0.4:
            attributes["transB"] = 1
        if b.r.random() < 0.2:
            attributes["alpha"] = 0.5
        inputs = [x, b.weight(WIDTH, WIDTH)]
        if b.r.random() < 0.8:
            inputs.append(b.weight(*b.r.choice(((WIDTH,), (1, WIDTH), ()))))
            if b.r.random() < 0.2:
                attributes["beta"] = 2.0
        x = b.node("Gemm", inputs, x.dims, **attributes)
        x = _affine(b, x) if b.r.random() < 0.3 else x
        b.keep(activation_of(b, x) if b.r.random() < 0.3 else x)


def affine(b: Builder) -> None:
    x = b.any()
    for _ in range(b.r.choice((1, 2, 3))):
        x = _affine(b, x)
    b.keep(x)


def _affine(b: Builder, x: V) -> V:
    kind = b.r.choice(("Mul", "Add", "Sub", "Div"))
    last = x.dims[-1]
    if b.r.random() < 0.5 or not isinstance(last, int):
        number = b.r.choice(NUMBERS)
        c = b.scalar(number if number or kind != "Div" else 2.0)
        if len(c.dims) > len(x.dims):
            c = b.constant(2.0, b.float)
    elif len(x.dims) == 4 and x.dims[1] == CHANNELS and b.r.random() < 0.7:
        shape = b.r.choice(((CHANNELS, 1, 1), (1, CHANNELS, 1, 1)))
        c = b.weight(*shape, low=0.5) if kind == "Div" else b.weight(*shape)
    else:
        c = b.weight(last, low=0.5) if kind == "Div" else b.weight(last)
    swap = kind in ("Sub",) and b.r.random() < 0.2
    return b.binary(kind, x, c, swap)


def elementwise(b: Builder) -> None:
    x = b.any()
    same = [v for v in b.values if v.dims == x.dims and v.dtype == x.dtype]
    b.keep(b.binary(b.r.choice(("Add", "Mul", "Sub", "Max", "Min")), x, b.r.choice(same)) if same else b.unary("Tanh", x))


def activation(b: Builder) -> None:
    b.keep(activation_of(b, b.any()))


def activation_of(b: Builder, x: V) -> V:
    return b.r.choice(ACTIVATIONS)(b, x)


def _plain(b: Builder, x: V) -> V:
    return b.unary(b.r.choice(("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Softplus", "Erf")), x)


def _twice(b: Builder, x: V) -> V:
    kind = b.r.choice(("Relu", "Neg", "Abs", "Identity", "Ceil", "Floor", "Sign") if b.float != "float16" else ("Relu", "Neg", "Abs"))
    return b.unary(kind, b.unary(kind, x))


def _clip(b: Builder, x: V) -> V:
    low, high = b.r.choice(((0.0, 6.0), (-1.0, 0.5), (-5.0, -1.0), (0.0, None), (None, 2.0)))
    given = [None if v is None else b.constant(v, b.float) for v in (low, high)]
    x = b.node("Clip", [x, *given] if given[1] is not None else [x, given[0]], x.dims)
    return b.unary("Relu", x) if b.r.random() < 0.3 else x


def _min_max(b: Builder, x: V) -> V:
    if b.opset < 12 and b.float == "float16":
        return b.unary("Relu", x)
    return b.binary("Min", b.binary("Max", x, b.constant(-1.0, b.float)), b.constant(1.5, b.float))


def _gelu_erf(b: Builder, x: V) -> V:
    root = b.scalar(2**0.5) if b.r.random() < 0.5 else b.constant(2**0.5, b.float)
    if len(root.dims) > len(x.dims):
        root = b.constant(2**0.5, b.float)
    e = b.unary("Erf", b.binary("Div", x, root) if b.r.random() < 0.7 else b.binary("Mul", x, b.constant(0.5**0.5, b.float)))
    one = b.binary("Add", e, b.constant(1.0, b.float))
    half = b.constant(0.5, b.float)
    way = b.r.randrange(3)
    if way == 0:
        return b.binary("Mul", b.binary("Mul", x, one), half)
    if way == 1:
        return b.binary("Mul", b.binary("Mul", x, half), one)
    return b.binary("Mul", x, b.binary("Mul", one, half))


def _gelu_tanh(b: Builder, x: V) -> V:
    cube = b.binary("Pow", x, b.constant(3.0, b.float)) if b.r.random() < 0.6 else b.binary("Mul", x, b.binary("Mul", x, x))
    inner = b.binary("Add", x, b.binary("Mul", cube, b.constant(0.044715, b.float)))
    t = b.unary("Tanh", b.binary("Mul", inner, b.constant((2 / 3.141592653589793) ** 0.5, b.float)))
    one = b.binary("Add", t, b.constant(1.0, b.float))
    half = b.binary("Mul", x, b.constant(0.5, b.float))
    return b.binary("Mul", half, one)


def _hard_swish(b: Builder, x: V) -> V:
    s = b.binary("Add", x, b.constant(3.0, b.float))
    s = b.node("Clip", [s, b.constant(0.0, b.float), b.constant(6.0, b.float)], x.dims)
    if b.r.random() < 0.5:
        return b.binary("Div", b.binary("Mul", x, s), b.constant(6.0, b.float))
    return b.binary("Mul", x, b.binary("Div", s, b.constant(6.0, b.float)))


def _gated(b: Builder, x: V) -> V:
    kind = b.r.choice(("Sigmoid", "HardSigmoid", "mish"))
    if kind == "mish":
        return b.binary("Mul", x, b.unary("Tanh", b.unary("Softplus", x)))
    if kind == "HardSigmoid" and b.r.random() < 0.5:
        return b.binary("Mul", x, b.unary("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    return b.binary("Mul", x, b.unary(kind, x))


def _softplus(b: Builder, x: V) -> V:
    x = b.binary("Min", x, b.constant(8.0, b.float)) if b.opset > 11 or b.float != "float16" else b.unary("Tanh", x)
    return b.unary("Log", b.binary("Add", b.unary("Exp", x), b.constant(1.0, b.float)))


def _leaky(b: Builder, x: V) -> V:
    if b.r.random() < 0.5:
        return b.unary("LeakyRelu", x, alpha=b.r.choice((0.01, 0.1, 0.0, 1.0)))
    return b.binary("Max", x, b.binary("Mul", x, b.constant(0.1, b.float))) if b.opset > 11 else b.unary("Relu", x)


def _prelu(b: Builder, x: V) -> V:
    size = x.dims[-1] if x.dims else "none"
    if b.r.random() < 0.4 or not isinstance(size, int):
        slope = b.constant(b.r.choice((0.25, 0.0, 1.5)), b.float)
    else:
        slope = b.weight(size, scale=b.r.choice((0.3, 1.0)))
    return b.node("PRelu", [x, slope], x.dims)


def _hard_sigmoid(b: Builder, x: V) -> V:
    if b.float == "float16" and b.opset < 12:
        return b.unary("Sigmoid", x)
    clipped = b.node("Clip", [b.binary("Add", x, b.constant(3.0, b.float)), b.constant(0.0, b.float), b.constant(6.0, b.float)], x.dims)
    return b.binary("Div", clipped, b.constant(6.0, b.float))


ACTIVATIONS = (
    _plain, _plain, _plain, _twice, _clip, _min_max, _gelu_erf, _gelu_tanh, _hard_swish, _hard_sigmoid, _gated, _gated, _softplus, _leaky,
    _prelu,
)


def normalization(b: Builder) -> None:
    b.keep(b.r.choice((_layer_norm, _layer_norm, _rms_norm, _l2, _softmax, _instance_norm, _group_norm))(b))


def _layer_norm(b: Builder) -> V:
    y = layer_norm_of(b, b.sequence())
    return linear_of(b, y) if b.r.random() < 0.5 else y


def layer_norm_of(b: Builder, x: V) -> V:
    """LayerNormalization over the last axis, as one operator or spelled out."""
    if b.opset >= 17 and b.r.random() < 0.3:
        return b.node("LayerNormalization", [x, b.weight(WIDTH), b.weight(WIDTH)], x.dims, axis=-1)
    centred = b.binary("Sub", x, b.mean(x, [-1]))
    square = b.binary("Pow", centred, b.constant(2.0, b.float)) if b.r.random() < 0.6 else b.binary("Mul", centred, centred)
    deviation = b.unary("Sqrt", b.binary("Add", b.mean(square, [-1]), b.constant(1e-3, b.float)))
    y = b.binary("Div", centred, deviation) if b.r.random() < 0.7 else b.binary("Mul", centred, b.unary("Reciprocal", deviation))
    if b.r.random() < 0.8:
        y = b.binary("Add", b.binary("Mul", y, b.weight(WIDTH)), b.weight(WIDTH))
    return y


def _rms_norm(b: Builder) -> V:
    return rms_norm_of(b, b.sequence())


def rms_norm_of(b: Builder, x: V) -> V:
    """RMSNormalization over the last axis, spelled out."""
    square = b.binary("Pow", x, b.constant(2.0, b.float)) if b.r.random() < 0.6 else b.binary("Mul", x, x)
    root = b.unary("Sqrt", b.binary("Add", b.mean(square, [-1]), b.constant(1e-3, b.float)))
    y = b.binary("Div", x, root) if b.r.random() < 0.4 else b.binary("Mul", x, b.unary("Reciprocal", root))
    return b.binary("Mul", b.weight(WIDTH), y) if b.r.random() < 0.7 else y


def _l2(b: Builder) -> V:
    x = b.sequence()
    if b.r.random() < 0.5:
        norm = b.mean(x, [-1], kind="ReduceL2")
    else:
        norm = b.unary("Sqrt", b.axes("ReduceSum", b.binary("Mul", x, x), [-1], (*x.dims[:-1], 1), keepdims=1))
    small = b.constant(1e-3, b.float)
    norm = b.node("Clip", [norm, small], norm.dims) if b.r.random() < 0.7 else b.binary("Add", norm, small)
    return b.binary("Div", x, norm)


def _softmax(b: Builder) -> V:
    x = b.sequence()
    if b.r.random() < 0.5:
        y = b.unary("Softmax", x, axis=-1)
        return b.unary("Log", y) if b.r.random() < 0.4 else y
    e = b.unary("Exp", b.binary("Sub", x, b.mean(x, [-1], kind="ReduceMax")))
    return b.binary("Div", e, b.axes("ReduceSum", e, [-1], (*x.dims[:-1], 1), keepdims=1))


def _instance_norm(b: Builder) -> V:
    x = b.image()
    if b.r.random() < 0.5:
        return b.node("InstanceNormalization", [x, b.weight(CHANNELS), b.weight(CHANNELS)], x.dims)
    centred = b.binary("Sub", x, b.mean(x, [2, 3]))
    variance = b.mean(b.binary("Mul", centred, centred), [2, 3])
    return b.binary("Div", centred, b.unary("Sqrt", b.binary("Add", variance, b.constant(1e-3, b.float))))


def _group_norm(b: Builder) -> V:
    x = b.image()
    if b.float == "float64":
        return b.unary("Tanh", x)
    wide = b.node("Reshape", [x, b.ints(0, 2, -1)], (x.dims[0], 2, 2 * SIDE * SIDE))
    one, zero = b.constant([1.0, 1.0], b.float), b.constant([0.0, 0.0], b.float)
    wide = b.node("InstanceNormalization", [wide, one, zero], wide.dims)
    y = b.node("Reshape", [wide, b.ints(0, CHANNELS, SIDE, SIDE)], x.dims)
    return b.binary("Add", b.binary("Mul", y, b.weight(CHANNELS, 1, 1)), b.weight(CHANNELS, 1, 1))


def pool(b: Builder) -> None:
    x = b.image()
    kind = b.r.choice(("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"))
    if b.float == "float64" and kind != "ReduceMean":
        kind = "ReduceMean"
    if kind in ("MaxPool", "AveragePool"):
        attributes = {"count_include_pad": b.r.randrange(2)} if kind == "AveragePool" else {}
        b.keep(b.node(kind, [x], x.dims, kernel_shape=[3, 3], pads=[1, 1, 1, 1], **attributes))
        return
    y = b.node(kind, [x], (x.dims[0], CHANNELS, 1, 1)) if kind == "GlobalAveragePool" else b.mean(x, [2, 3])
    gate = b.unary("Sigmoid", b.node("Conv", [y, b.weight(CHANNELS, CHANNELS, 1, 1)], y.dims))
    b.keep(b.binary("Mul", x, gate))  # squeeze and excitation


BLOCKS = {conv: 6, conv_transpose: 1, parallel: 3, linear: 5, gemm: 2, affine: 4, elementwise: 4, activation: 6, normalization: 5, pool: 2}
