"""Every spelling of GELU becomes Gelu; what only looks like it stays."""

import math

import numpy as np
import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same

NAME = "fuse-gelu"
X = (2, 3, 5)


def one_plus_erf(e: Expression, x: str, *, divide: bool = True, swap: bool = False) -> str:
    scaled = e.Div(x, math.sqrt(2)) if divide else e.Mul(math.sqrt(0.5), x)
    return e.Add(1.0, e.Erf(scaled)) if swap else e.Add(e.Erf(scaled), 1.0)


def one_plus_tanh(e: Expression, x: str, cube: str) -> str:
    if cube == "drawn out":
        inner = e.Add(1.0, e.Mul(e.Mul(x, 0.044715), x))
        return e.Add(e.Tanh(e.Mul(e.Mul(x, math.sqrt(2 / math.pi)), inner)), 1.0)
    if cube == "pow":
        third = e.Mul(e.Pow(x, 3.0), 0.044715)
    elif cube == "square":
        third = e.Mul(0.044715, e.Mul(x, e.Pow(x, 2.0)))
    else:
        third = e.Mul(x, e.Mul(x, e.Mul(0.044715, x)))
    return e.Add(1.0, e.Tanh(e.Mul(math.sqrt(2 / math.pi), e.Add(x, third))))


def tail(e: Expression, x: str, curve: str, order: str) -> str:
    if order == "(x c) / 2":
        return e.Mul(e.Mul(x, curve), 0.5, output="y")
    if order == "x (c / 2)":
        return e.Mul(x, e.Mul(0.5, curve), output="y")
    if order == "(x / 2) c":
        return e.Mul(e.Mul(0.5, x), curve, output="y")
    return e.Div(e.Mul(curve, x), 2.0, output="y")


ORDERS = ["(x c) / 2", "x (c / 2)", "(x / 2) c", "by division"]


def gelu(order: str = "(x c) / 2", *, curve=one_plus_erf, opset: int = 20, dtype: str = "float32", **kwargs) -> Expression:
    e = Expression(dtype, opset)
    x = e.Neg("x")
    tail(e, x, curve(e, x, **kwargs), order)
    return e


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kwargs", [{"divide": True}, {"divide": False, "swap": True}])
def test_by_erf(order, kwargs) -> None:
    before = gelu(order, **kwargs).model({"x": X}, ["y"])
    after = fused(NAME, before, {"Neg": 1, "Gelu": 1})
    assert_same(before, after, {"x": 3 * array(*X)})


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cube", ["pow", "square", "products", "drawn out"])
def test_by_tanh(order, cube) -> None:
    before = gelu(order, curve=one_plus_tanh, cube=cube).model({"x": X}, ["y"])
    after = fused(NAME, before, {"Neg": 1, "Gelu": 1})
    assert after.graph.node[1].attribute[0].s == b"tanh"
    assert_same(before, after, {"x": 3 * array(*X)})


def test_of_a_product() -> None:
    e = Expression(opset=20)
    x = e.Mul("x", "x")
    tail(e, x, one_plus_tanh(e, x, "products"), "x (c / 2)")
    before = e.model({"x": X}, ["y"])
    assert_same(before, fused(NAME, before, {"Mul": 1, "Gelu": 1}), {"x": array(*X)})


def test_half_precision() -> None:
    before = gelu(dtype="float16").model({"x": X}, ["y"])
    assert_same(before, fused(NAME, before, {"Neg": 1, "Gelu": 1}), {"x": array(*X, dtype="float16")}, rtol=2e-3)


def test_symbolic_shape_and_constants_with_dimensions() -> None:
    e = Expression(opset=20)
    curve = e.Add(e.Erf(e.Div("x", np.full((1, 1), math.sqrt(2), "f4"))), np.ones(1, "f4"))
    e.Mul(e.Mul("x", curve), np.full((1, 1, 1), 0.5, "f4"), output="y")
    before = e.model({"x": ("b", "s", 5)}, ["y"])
    assert_same(before, fused(NAME, before, {"Gelu": 1}), {"x": array(*X)})


@pytest.mark.parametrize("wide", [0.5, 1.0, math.sqrt(2)])
def test_constants_that_add_dimensions(wide) -> None:
    def number(value):
        return np.full((1, 1, 1, 1), value, "f4") if value == wide else value

    e = Expression(opset=20)
    e.Mul(e.Mul("x", e.Add(e.Erf(e.Div("x", number(math.sqrt(2)))), number(1.0))), number(0.5), output="y")
    unmatched(NAME, e.model({"x": X}, ["y"]))


@pytest.mark.parametrize("change", [{"half": 0.5000001}, {"root": 1.4142099}, {"one": 1.0000001}, {"root": 1.414}])
def test_other_constants(change) -> None:
    numbers = {"half": 0.5, "root": math.sqrt(2), "one": 1.0} | change
    e = Expression(opset=20)
    e.Mul(e.Mul("x", e.Add(e.Erf(e.Div("x", numbers["root"])), numbers["one"])), numbers["half"], output="y")
    unmatched(NAME, e.model({"x": X}, ["y"]))


@pytest.mark.parametrize(("scale", "cubic", "power"), [(0.7978, 0.044715, 3), (0.7978845608, 0.0447, 3), (0.7978845608, 0.044715, 2)])
def test_other_approximations(scale, cubic, power) -> None:
    e = Expression(opset=20)
    curve = e.Tanh(e.Mul(scale, e.Add("x", e.Mul(cubic, e.Pow("x", float(power))))))
    e.Mul(e.Mul("x", 0.5), e.Add(1.0, curve), output="y")
    unmatched(NAME, e.model({"x": X}, ["y"]))


def test_of_two_values() -> None:
    e = Expression(opset=20)
    e.Mul(e.Mul("z", one_plus_erf(e, "x")), 0.5, output="y")
    unmatched(NAME, e.model({"x": X, "z": X}, ["y"]))


def test_refusals() -> None:
    refused(NAME, gelu(opset=19).model({"x": X}, ["y"]), "Gelu needs opset 20, and the model has 19")
    used = gelu()
    used.Neg("v1", output="z")
    refused(NAME, used.model({"x": X}, ["y", "z"]), "other consumers")
    e = Expression(opset=20)
    curve = e.Add(e.Erf(e.Div("x", math.sqrt(2))), 1.0, output="z")
    e.Mul(e.Mul("x", 0.5), curve, output="y")
    unmatched(NAME, e.model({"x": X}, ["y", "z"]))
    double = gelu(dtype="float64").model({"x": X}, ["y"])
    refused(NAME, double, "float32 or float16")


def test_a_constant_that_a_caller_may_override() -> None:
    e = Expression(opset=20)
    e.initializers["half"] = np.float32(0.5)
    e.Mul(e.Mul("x", one_plus_erf(e, "x")), "half", output="y")
    unmatched(NAME, e.model({"x": X}, ["y"], overridable=["half"]))
