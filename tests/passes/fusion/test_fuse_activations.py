"""HardSigmoid, HardSwish, Mish and Softplus, and what only resembles them."""

import numpy as np
import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same

SIGMOID, SWISH, MISH, SOFTPLUS = "fuse-hardsigmoid", "fuse-hardswish", "fuse-mish", "fuse-softplus"
X = (3, 7)
FEED = {"x": np.concatenate([5 * array(19), np.array([np.inf, -3, 3], "f4")]).reshape(2, 11).repeat(2, 0)[:3, :7]}


def relu6(e: Expression, x: str, shift: float = 3.0, top: float = 6.0) -> str:
    shifted = e.Add(x, shift)
    return e.Clip(shifted, 0.0, top) if e.opset > 10 else e.Clip(shifted, min=0.0, max=top)


@pytest.mark.parametrize("form", ["division", "product", "inside", "inside divided"])
@pytest.mark.parametrize("opset", [9, 17])
def test_hardsigmoid(form, opset) -> None:
    e = Expression(opset=opset)
    if form.startswith("inside"):
        line = e.Add(0.5, e.Div("x", 6.0) if "divided" in form else e.Mul(1 / 6, "x"))
        e.Clip(line, 0.0, 1.0, output="y") if opset > 10 else e.Clip(line, min=0.0, max=1.0, output="y")
    elif form == "division":
        e.Div(relu6(e, "x"), 6.0, output="y")
    else:
        e.Mul(1 / 6, relu6(e, "x"), output="y")
    before = e.model({"x": X}, ["y"])
    assert_same(before, fused(SIGMOID, before, {"HardSigmoid": 1}), FEED)


def test_hardsigmoid_with_its_own_line() -> None:
    e = Expression()
    e.Clip(e.Add(e.Mul("x", 0.2), 0.4), 0.0, 1.0, output="y")
    before = e.model({"x": X}, ["y"])
    assert_same(before, fused(SIGMOID, before, {"HardSigmoid": 1}), FEED)


@pytest.mark.parametrize(("top", "divisor"), [(6.0, 5.0), (6.0, 6.000001), (5.0, 6.0)])
def test_no_hardsigmoid(top, divisor) -> None:
    e = Expression()
    e.Div(relu6(e, "x", top=top), divisor, output="y")
    unmatched(SIGMOID, e.model({"x": X}, ["y"]))


def test_hardsigmoid_refusals() -> None:
    e = Expression()
    e.Div(relu6(e, "x"), 6.0, output="y")
    refused(SIGMOID, e.model({"x": X}, ["y", "v0"]), "graph output")
    e = Expression("float64")
    e.Div(relu6(e, "x"), 6.0, output="y")
    refused(SIGMOID, e.model({"x": X}, ["y"]), "float32 or float16")
    e = Expression()
    e.Div(6.0, relu6(e, "x"), output="y")
    unmatched(SIGMOID, e.model({"x": X}, ["y"]))
    e = Expression()
    e.Clip(e.Add("x", array(7)), 0.0, 1.0, output="y")
    unmatched(SIGMOID, e.model({"x": X}, ["y"]))


def hardswish(form: str, opset: int = 14, dtype: str = "float32") -> Expression:
    e = Expression(dtype, opset)
    x = e.Neg("x")
    if form == "gate":
        e.Mul(x, e.HardSigmoid(x, alpha=1 / 6, beta=0.5), output="y")
    elif form == "product first":
        e.Div(e.Mul(x, relu6(e, x)), 6.0, output="y")
    elif form == "division first":
        e.Mul(e.Div(relu6(e, x), 6.0), x, output="y")
    elif form == "by a sixth":
        e.Mul(e.Mul(relu6(e, x), 1 / 6), x, output="y")
    else:
        e.Mul(e.Div(x, 6.0), relu6(e, x), output="y")
    return e


FORMS = ["product first", "division first", "by a sixth", "x divided"]


@pytest.mark.parametrize("form", [*FORMS, "gate"])
def test_hardswish(form) -> None:
    before = hardswish(form).model({"x": X}, ["y"])
    assert_same(before, fused(SWISH, before, {"Neg": 1, "HardSwish": 1}), {"x": 5 * array(*X)})


@pytest.mark.parametrize("form", FORMS)
def test_hardswish_before_its_opset(form) -> None:
    before = hardswish(form, opset=11).model({"x": X}, ["y"])
    assert_same(before, fused(SWISH, before, {"Neg": 1, "HardSigmoid": 1, "Mul": 1}), {"x": 5 * array(*X)})


def test_no_hardswish() -> None:
    unmatched(SWISH, hardswish("gate", opset=13).model({"x": X}, ["y"]))
    for alpha, beta in ((0.2, 0.5), (1 / 6, 0.4)):
        e = Expression()
        e.Mul("x", e.HardSigmoid("x", alpha=alpha, beta=beta), output="y")
        unmatched(SWISH, e.model({"x": X}, ["y"]))
    e = Expression()
    e.Mul("z", e.HardSigmoid("x", alpha=1 / 6), output="y")
    unmatched(SWISH, e.model({"x": X, "z": X}, ["y"]))
    e = Expression()
    e.Div(e.Mul("x", relu6(e, "x", shift=2.0)), 6.0, output="y")
    unmatched(SWISH, e.model({"x": X}, ["y"]))


def test_hardswish_refusals() -> None:
    e = hardswish("division first")
    refused(SWISH, e.model({"x": X}, ["y", "v1"]), "graph output")
    refused(SWISH, hardswish("product first", dtype="float64").model({"x": X}, ["y"]), "float32 or float16")


def mish(opset: int = 18, dtype: str = "float32") -> Expression:
    e = Expression(dtype, opset)
    e.Mul("x", e.Tanh(e.Softplus("x")), output="y")
    return e


def test_mish() -> None:
    before = mish().model({"x": X}, ["y"])
    assert_same(before, fused(MISH, before, {"Mish": 1}), {"x": 5 * array(*X)})
    refused(MISH, mish(opset=17).model({"x": X}, ["y"]), "Mish needs opset 18")
    refused(MISH, mish(dtype="float64").model({"x": X}, ["y"]), "float32")
    refused(MISH, mish().model({"x": X}, ["y", "v0"]), "graph output")
    e = Expression(opset=18)
    e.Mul("z", e.Tanh(e.Softplus("x")), output="y")
    unmatched(MISH, e.model({"x": X, "z": X}, ["y"]))


@pytest.mark.parametrize("by", ["Relu", "Max"])
def test_softplus(by) -> None:
    e = Expression()
    curve = e.Log(e.Add(1.0, e.Exp(e.Neg(e.Abs("x")))))
    e.Add(e.Relu("x") if by == "Relu" else e.Max("x", 0.0), curve, output="y")
    before = e.model({"x": X}, ["y"])
    assert_same(before, fused(SOFTPLUS, before, {"Softplus": 1}), {"x": 100 * array(*X)})


def test_softplus_refusals() -> None:
    e = Expression()
    e.Log(e.Add(e.Exp("x"), 1.0), output="y")
    refused(SOFTPLUS, e.model({"x": X}, ["y"]), "exp overflows where x is large")
    for one, other, base in ((2.0, "x", 0.0), (1.0, "z", 0.0), (1.0, "x", 1.0)):
        e = Expression()
        e.Add(e.Max(other, base), e.Log(e.Add(one, e.Exp(e.Neg(e.Abs("x"))))), output="y")
        unmatched(SOFTPLUS, e.model({"x": X, "z": X}, ["y"]))
    e = Expression()
    e.Add(e.Relu("x"), e.Log(e.Add(1.0, e.Exp(e.Neg(e.Abs("x"))))), output="y")
    refused(SOFTPLUS, e.model({"x": X}, ["y", "v1"]), "graph output")
