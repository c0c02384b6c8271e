"""The spellings of LeakyRelu, and slopes for which they are something else."""

import numpy as np
import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same

NAME = "fuse-leaky-relu"
X = (3, 7)
FEED = {"x": np.concatenate([array(18), np.array([np.inf, -np.inf, 0.0], "f4")]).reshape(X)}
FORMS = ["max", "greater", "not less", "less", "relu", "relu added"]


def leaky(form: str, slope: float = 0.125, *, dtype: str = "float32", opset: int = 17) -> Expression:
    e = Expression(dtype, opset)
    if form == "max":
        e.Max(e.Mul(slope, "x"), "x", output="y")
    elif form == "greater":
        e.Where(e.Greater("x", 0.0), "x", e.Mul("x", slope), output="y")
    elif form == "not less":
        e.Where(e.GreaterOrEqual("x", 0.0), "x", e.Mul("x", slope), output="y")
    elif form == "less":
        e.Where(e.Less("x", 0.0), e.Mul(slope, "x"), "x", output="y")
    elif form == "relu":
        e.Sub(e.Relu("x"), e.Mul(slope, e.Relu(e.Neg("x"))), output="y")
    else:
        e.Add(e.Mul(e.Relu(e.Neg("x")), -slope), e.Relu("x"), output="y")
    return e


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("slope", [0.125, 0.0, 0.1])
def test_fused(form, slope) -> None:
    before = leaky(form, slope).model({"x": X}, ["y"])
    feed = {"x": np.where(np.isfinite(FEED["x"]), FEED["x"], 1.0)} if slope == 0 else FEED  # 0 * inf is no number
    assert_same(before, fused(NAME, before, {"LeakyRelu": 1}), feed)


@pytest.mark.parametrize("form", FORMS)
def test_steeper_below(form) -> None:
    before = leaky(form, 1.5).model({"x": X}, ["y"])
    if form == "max":
        unmatched(NAME, before)
        return
    assert_same(before, fused(NAME, before, {"LeakyRelu": 1}), FEED)


def test_types() -> None:
    for dtype in ("float16", "float64"):
        before = leaky("max", 0.125, dtype=dtype).model({"x": X}, ["y"])
        assert_same(before, fused(NAME, before, {"LeakyRelu": 1}), {"x": array(*X, dtype=dtype)})
    refused(NAME, leaky("max", 0.1, dtype="float64").model({"x": X}, ["y"]), "the slope is not a float32")


def test_other_things() -> None:
    e = Expression()
    e.Where(e.Greater("x", 0.5), "x", e.Mul("x", 0.1), output="y")
    unmatched(NAME, e.model({"x": X}, ["y"]))
    e = Expression()
    e.Where(e.Greater("z", 0.0), "x", e.Mul("x", 0.1), output="y")
    unmatched(NAME, e.model({"x": X, "z": X}, ["y"]))
    e = Expression()
    e.Where(e.Greater("x", 0.0), e.Mul("x", 0.1), "x", output="y")
    unmatched(NAME, e.model({"x": X}, ["y"]))
    e = Expression()
    e.Max(e.Mul("x", array(7)), "x", output="y")
    unmatched(NAME, e.model({"x": X}, ["y"]))
    e = Expression()
    e.Max(e.Div(0.1, "x"), "x", output="y")
    unmatched(NAME, e.model({"x": X}, ["y"]))
    e = Expression()
    e.Sub(e.Relu("x"), e.Mul(0.1, e.Relu(e.Neg("z"))), output="y")
    unmatched(NAME, e.model({"x": X, "z": X}, ["y"]))


def test_other_consumers() -> None:
    refused(NAME, leaky("greater").model({"x": X}, ["y", "v1"]), "graph output")
