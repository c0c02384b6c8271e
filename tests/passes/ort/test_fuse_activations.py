"""Conv and Gemm take the activation behind them in, where nothing else needs what is between."""

import numpy as np
import pytest

from graphopt.rewriting import Effect
from tests.passes.fusion.expressions import Expression, refused, unmatched
from tests.passes.ort.common import attributes, becomes
from tests.support import REGISTRY, array

CONV, GEMM = "fuse-conv-activation", "fuse-gemm-activation"
X = ("n", 4, 7, 6)
F = np.float32


def conv(act=None, *, opset=17, x="x", bias=True, activation=(), more=None, **settings) -> Expression:
    e = Expression(opset=opset)
    shape = settings.pop("weight", (6, 4, 3, 3))
    c = e.Conv(x, array(*shape), *([array(6, seed=1)] if bias else []), **settings)
    if more:
        more(e, c)
    e.op(act, c, *activation, output="y", **settings.pop("given", {})) if isinstance(act, str) else act(e, c)
    return e


@pytest.mark.parametrize(
    ("act", "given", "params"),
    [
        ("Relu", {}, None), ("Sigmoid", {}, None), ("Tanh", {}, None), ("HardSwish", {}, None), ("LeakyRelu", {}, [F(0.01)]),
        ("LeakyRelu", {"alpha": 0.3}, [F(0.3)]), ("HardSigmoid", {}, [F(0.2), 0.5]),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.25}, [F(0.3), 0.25]),
    ],
)
def test_conv(act, given, params) -> None:
    e = Expression()
    e.op(act, e.Conv("x", array(6, 4, 3, 3), array(6), strides=[2, 1], pads=[1, 0, 0, 1]), output="y", **given)
    after = becomes(CONV, e.model({"x": X}, {"y": [None] * 4}), {"FusedConv": 1}, {"x": array(2, 4, 7, 6)})
    found = attributes(after, "FusedConv")
    assert found["activation"] == act.encode() and found.get("activation_params") == params
    assert found["strides"] == [2, 1] and found["pads"] == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("bounds", "params"), [((0.0, 6.0), [0, 6]), ((-1.0, ""), [-1, np.finfo("f4").max]), (("", 2.0), [np.finfo("f4").min, 2])]
)
def test_clip(bounds, params) -> None:
    e = Expression()
    e.Clip(e.Conv("x", array(6, 4, 3)), *bounds, output="y")  # one-dimensional, without a bias
    after = becomes(CONV, e.model({"x": ("n", 4, 9)}, {"y": [None] * 3}), {"FusedConv": 1}, {"x": 3 * array(2, 4, 9)})
    assert attributes(after, "FusedConv")["activation_params"] == params


def test_clip_with_attributes() -> None:
    e = Expression(opset=10)
    e.Clip(e.Conv("x", array(6, 4, 3, 3)), min=0.0, max=6.0, output="y")
    after = becomes(CONV, e.model({"x": X}, {"y": [None] * 4}), {"FusedConv": 1}, {"x": 3 * array(2, 4, 7, 6)})
    assert attributes(after, "FusedConv")["activation_params"] == [0, 6]


def hard_swish(e: Expression, alpha=1 / 6, beta=0.5, output="y", conv_first=True) -> str:
    c = e.Conv("x", array(6, 4, 3, 3), array(6))
    gate = e.HardSigmoid(c, alpha=alpha, beta=beta)
    e.Mul(*((c, gate) if conv_first else (gate, c)), output=output)
    return c


@pytest.mark.parametrize("conv_first", [True, False])
def test_hard_swish_spelled_out(conv_first) -> None:
    e = Expression(opset=12)
    hard_swish(e, conv_first=conv_first)
    after = becomes(CONV, e.model({"x": X}, {"y": [None] * 4}), {"FusedConv": 1}, {"x": 3 * array(2, 4, 7, 6)})
    assert attributes(after, "FusedConv")["activation"] == b"HardSwish"


def test_other_gates() -> None:
    e = Expression()
    hard_swish(e, alpha=0.2)
    unmatched(CONV, e.model({"x": X}, {"y": [None] * 4}))
    e = Expression()
    e.Relu(hard_swish(e), output="z")
    refused(CONV, e.model({"x": X}, {"y": [None] * 4, "z": [None] * 4}), "3 consumers, not the two of a HardSwish")
    e = Expression()
    e.Mul("x", e.HardSigmoid("x", alpha=1 / 6), output="y")
    unmatched(CONV, e.model({"x": X}, {"y": [None] * 4}))


def test_conv_refusals() -> None:
    outputs = {"y": [None] * 4, "z": [None] * 4}
    e = Expression()
    c = e.Conv("x", array(6, 4, 3, 3))
    e.Relu(c, output="y")
    e.Neg(c, output="z")
    refused(CONV, e.model({"x": X}, outputs), "the output of the Conv 'v0' has 2 consumers: y, z")
    e = Expression()
    e.Relu(e.Conv("x", array(6, 4, 3, 3), output="z"), output="y")
    refused(CONV, e.model({"x": X}, outputs), "graph output")
    e = Expression()
    e.Clip(e.Conv("x", array(6, 4, 3, 3)), "lo", output="y")
    refused(CONV, e.model({"x": X, "lo": ()}, {"y": [None] * 4}), "bound 'lo' of the Clip is not a constant")
    e = Expression("float64")
    e.Relu(e.Conv("x", array(6, 4, 3, 3, dtype="float64")), output="y")
    refused(CONV, e.model({"x": X}, {"y": [None] * 4}), "float32")
    e = Expression()
    e.Elu(e.Conv("x", array(6, 4, 3, 3)), output="y")
    unmatched(CONV, e.model({"x": X}, {"y": [None] * 4}))


def test_quantized_operators_stay() -> None:
    scale, zero = F(0.1), np.uint8(128)
    e = Expression()
    x = e.DequantizeLinear(e.QuantizeLinear("x", scale, zero), scale, zero)
    e.Relu(e.Conv(x, array(6, 4, 3, 3)), output="y")
    refused(CONV, e.model({"x": X}, {"y": [None] * 4}), "it is quantized")
    e = Expression()
    relu = e.Relu(e.Conv("x", array(6, 4, 3, 3)))
    e.DequantizeLinear(e.QuantizeLinear(relu, scale, zero), scale, zero, output="y")
    refused(CONV, e.model({"x": X}, {"y": [None] * 4}), "its result is quantized")


@pytest.mark.parametrize(
    ("act", "given"),
    [
        ("Relu", {}), ("Sigmoid", {}), ("Tanh", {}), ("Softplus", {}), ("Softsign", {}), ("LeakyRelu", {}), ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {}), ("Elu", {"alpha": 0.4}), ("Selu", {}), ("Selu", {"alpha": 1.5, "gamma": 1.1}), ("HardSigmoid", {}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.1}), ("ThresholdedRelu", {}), ("ThresholdedRelu", {"alpha": 0.5}),
    ],
)
def test_gemm(act, given) -> None:
    e = Expression()
    e.op(act, e.Gemm("x", array(5, 4), array(5), transB=1, alpha=0.5, beta=2.0), output="y", **given)
    after = becomes(GEMM, e.model({"x": ("n", 4)}, {"y": [None] * 2}), {"FusedGemm": 1}, {"x": array(3, 4)})
    found = attributes(after, "FusedGemm")
    assert found["activation"] == act.encode() and found["transB"] == 1 and found["alpha"] == 0.5 and found["beta"] == 2


def test_gemm_refusals() -> None:
    e = Expression()
    g = e.Gemm("x", array(4, 5))
    e.Relu(g, output="y")
    e.Neg(g, output="z")
    refused(GEMM, e.model({"x": ("n", 4)}, {"y": [None] * 2, "z": [None] * 2}), "has 2 consumers: y, z")
    e = Expression("float64")
    e.Relu(e.Gemm("x", array(4, 5, dtype="float64")), output="y")
    refused(GEMM, e.model({"x": ("n", 4)}, {"y": [None] * 2}), "float32")
    e = Expression()
    e.HardSwish(e.Gemm("x", array(4, 5)), output="y")
    unmatched(GEMM, e.model({"x": ("n", 4)}, {"y": [None] * 2}))


def test_declared() -> None:
    for name in (CONV, GEMM):
        made = REGISTRY.get(name)
        assert made.effect is Effect.ROUNDING and made.providers == {"cpu"}
