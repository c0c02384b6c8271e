"""GELU in its spellings becomes an operator of the runtime where the opset has none; a bias goes in."""

import math

import numpy as np
import pytest

from tests.passes.fusion.expressions import Expression, refused, unmatched
from tests.passes.fusion.test_fuse_gelu import ORDERS, gelu, one_plus_tanh
from tests.passes.ort.common import MS, becomes
from tests.support import array

X = (2, 3, 5)


@pytest.mark.parametrize("order", ORDERS)
def test_by_erf(order) -> None:
    becomes("fuse-erf-gelu", gelu(order, opset=17).model({"x": X}, ["y"]), {"Neg": 1, "Gelu": 1})


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cube", ["pow", "products", "drawn out"])
def test_by_tanh(order, cube) -> None:
    before = gelu(order, curve=one_plus_tanh, cube=cube, opset=17).model({"x": X}, ["y"])
    becomes("fuse-fast-gelu", before, {"Neg": 1, "FastGelu": 1})


@pytest.mark.parametrize(("name", "curve"), [("fuse-erf-gelu", {}), ("fuse-fast-gelu", {"curve": one_plus_tanh, "cube": "pow"})])
def test_types_and_opsets(name, curve) -> None:
    half = gelu(opset=17, dtype="float16", **curve).model({"x": X}, ["y"])
    becomes(name, half, {"Neg": 1, "Gelu" if name == "fuse-erf-gelu" else "FastGelu": 1}, rtol=5e-3)
    refused(name, gelu(opset=17, dtype="float64", **curve).model({"x": X}, ["y"]), "float32 or float16")
    unmatched(name, gelu(opset=20, **curve).model({"x": X}, ["y"]))  # Gelu is there
    used = gelu(opset=17, **curve)
    used.Neg("v1", output="z")
    refused(name, used.model({"x": X}, ["y", "z"]), "other consumers")
    e = Expression()
    e.Mul("x", e.Mul(e.Add(e.Tanh(e.Erf("x")), 1.0), 0.5), output="y")
    unmatched(name, e.model({"x": X}, ["y"]))


def biased(op="Gelu", *, bias=None, x="x", opset=20, domain="", swap=False, **attributes) -> Expression:
    e = Expression(opset=opset)
    bias = array(5) if bias is None else bias
    e.op(op, e.Add(bias, x) if swap else e.Add(x, bias), domain=domain, output="y", **attributes)
    return e


@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    [
        ("Gelu", {}, "BiasGelu"), ("Gelu", {"swap": True}, "BiasGelu"), ("Gelu", {"approximate": "tanh"}, "FastGelu"),
        ("Gelu", {"domain": "com.microsoft", "opset": 17}, "BiasGelu"), ("FastGelu", {"domain": "com.microsoft", "opset": 17}, "FastGelu"),
    ],
)
@pytest.mark.parametrize("x", [X, ("n", "s", 5)])
def test_bias(op, attributes, expected, x) -> None:
    before = biased(op, **attributes).model({"x": x}, {"y": [None] * 3}, opsets=MS)
    becomes("fuse-bias-gelu", before, {expected: 1}, {"x": array(*X)})


def test_bias_refusals() -> None:
    name = "fuse-bias-gelu"
    unmatched(name, biased(bias="r").model({"x": X, "r": X}, ["y"]))
    refused(name, biased(bias=array(1, 5)).model({"x": X}, ["y"]), "not a vector along the last dimension")
    refused(name, biased(bias=array(1)).model({"x": X}, ["y"]), "not a vector along the last dimension")
    refused(name, biased(bias=array(5)).model({"x": (2, 3, "n")}, {"y": [None] * 3}), "not a vector along the last dimension")
    e = biased()
    e.Neg("v0", output="z")
    refused(name, e.model({"x": X}, ["y", "z"]), "has 2 consumers: y, z")
    e = biased()
    double = Expression("float64", 20)
    double.Gelu(double.Add("x", array(5, dtype="float64")), output="y")
    refused(name, double.model({"x": X}, ["y"]), "float32 or float16")


def quick(spelling: str, alpha=None, dtype="float32") -> Expression:
    e = Expression(dtype, 24 if spelling == "swish" else 17)
    if spelling == "swish":
        e.Swish("x", output="y", **({} if alpha is None else {"alpha": alpha}))
    elif spelling == "exp":
        e.Div("x", e.Add(1.0, e.Exp(e.Neg("x") if alpha is None else e.Mul("x", -alpha))), output="y")
    else:
        argument = "x" if alpha is None else e.Mul(alpha, "x")
        sigmoid = e.Sigmoid(argument)
        e.Mul(*(("x", sigmoid) if spelling == "x first" else (sigmoid, "x")), output="y")
    return e


@pytest.mark.parametrize("spelling", ["x first", "x last", "exp", "swish"])
@pytest.mark.parametrize("alpha", [None, 1.702])
def test_quick(spelling, alpha) -> None:
    before = quick(spelling, alpha).model({"x": ("n", 5)}, {"y": [None] * 2})
    after = becomes("fuse-quick-gelu", before, {"QuickGelu": 1}, {"x": 4 * array(3, 5)})
    (given,) = after.graph.node[0].attribute
    assert given.f == pytest.approx(1.0 if alpha is None else 1.702)


def test_quick_refusals() -> None:
    name = "fuse-quick-gelu"
    e = quick("x first")
    e.Neg("v0", output="z")
    refused(name, e.model({"x": X}, ["y", "z"]), "the result of Sigmoid 'v0' has 2 consumers: y, z")
    refused(name, quick("exp", dtype="float64").model({"x": X}, ["y"]), "float32 or float16")
    e = Expression()
    e.Mul("x", e.Sigmoid(e.Mul("x", np.full((1, 1, 1, 1), 2.0, "f4"))), output="y")
    refused(name, e.model({"x": X}, ["y"]), "adds dimensions")
    for other in (lambda e: e.Mul("x", e.Sigmoid("r"), output="y"), lambda e: e.Mul("x", e.Sigmoid(e.Mul("x", "r")), output="y")):
        e = Expression()
        other(e)
        unmatched(name, e.model({"x": X, "r": X}, ["y"]))
    e = Expression()
    e.Div("x", e.Add(2.0, e.Exp(e.Neg("x"))), output="y")
    unmatched(name, e.model({"x": X}, ["y"]))
    e = Expression()
    e.Div("x", e.Add(1.0, e.Exp("x")), output="y")
    unmatched(name, e.model({"x": X}, ["y"]))


def test_what_the_runtime_misses(tmp_path) -> None:
    """The spellings for which the passes are worth it on a CPU: the runtime leaves them as they are."""
    from tests.passes.steering.test_keep_add_before_layernorm import runtime_ops

    cube = gelu("(x c) / 2", curve=one_plus_tanh, cube="products", opset=17).model({"x": X}, ["y"])
    assert runtime_ops(cube, tmp_path)["Tanh"] == 1
    e = Expression()
    e.Div("x", e.Add(1.0, e.Exp(e.Neg("x"))), output="y")
    assert runtime_ops(e.model({"x": X}, ["y"]), tmp_path)["Exp"] == 1
    e = Expression()
    e.Mul("x", e.Mul(0.5, e.Add(e.Erf(e.Div("x", math.sqrt(2))), 1.0)), output="y")
    assert runtime_ops(e.model({"x": X}, ["y"]), tmp_path)["Erf"] == 1
