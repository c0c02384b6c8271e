"""Root mean square normalizations are respelled so that the runtime fuses them; what it would not fuse stays."""

import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.passes.steering.test_keep_add_before_layernorm import runtime_ops
from tests.support import array, assert_same

NAME = "respell-rms-normalization"
X = ("n", "s", 8)
SPELLED = {"Pow": 1, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Div": 1, "Mul": 1}


def rms(how: str, *, opset=20, scale=None, axis=-1, dtype="float32", x="x") -> Expression:
    e = Expression(dtype, opset)
    scale = array(8, low=0.5, dtype=dtype) if scale is None else scale
    square = e.Mul(x, x) if how == "products" else e.Pow(x, 2.0)
    total = e.Add(e.reduce("ReduceMean", square, [axis]), 1e-6)
    if how == "divided":
        normal = e.Div(x, e.Sqrt(total))
    else:
        inverse = e.Pow(total, -0.5) if how == "power" else e.Div(1.0, e.Sqrt(total)) if how == "one over" else e.Reciprocal(e.Sqrt(total))
        if how == "scale first":
            e.Mul(x, e.Mul(inverse, scale), output="y")
            return e
        normal = e.Mul(x, inverse)
    e.Mul(scale, normal, output="y")
    return e


@pytest.mark.parametrize("how", ["reciprocal", "products", "power", "scale first"])
@pytest.mark.parametrize("opset", [13, 20])
def test_respelled_and_fused(how, opset, tmp_path) -> None:
    before = rms(how, opset=opset).model({"x": X}, {"y": [None] * 3})
    after = fused(NAME, before, SPELLED)
    assert_same(before, after, {"x": array(2, 3, 8)})
    assert runtime_ops(before, tmp_path)["SimplifiedLayerNormalization"] == 0
    assert runtime_ops(after, tmp_path) == {"SimplifiedLayerNormalization": 1}
    unmatched(NAME, after)


def test_what_is_fine_as_it_is() -> None:
    unmatched(NAME, rms("divided").model({"x": X}, {"y": [None] * 3}))
    unmatched(NAME, rms("one over").model({"x": X}, {"y": [None] * 3}))
    unmatched(NAME, rms("reciprocal", opset=23).model({"x": X}, {"y": [None] * 3}))
    e = Expression()
    e.Div("x", e.Sqrt(e.Add(e.reduce("ReduceMean", e.Pow("x", 2.0), [-1]), 1e-6)), output="y")
    unmatched(NAME, e.model({"x": X}, {"y": [None] * 3}))


def test_refusals() -> None:
    outputs = {"y": [None] * 3}
    refused(NAME, rms("reciprocal", axis=1).model({"x": (2, 8, 8)}, outputs), "other axes than the last")
    refused(NAME, rms("reciprocal", scale="g").model({"x": X, "g": (8,)}, outputs), "not a constant vector")
    refused(NAME, rms("reciprocal", scale=array(1, 8)).model({"x": X}, outputs), "not a constant vector")
    refused(NAME, rms("reciprocal", scale=array(1)).model({"x": X}, outputs), "as long as the last axis")
    refused(NAME, rms("reciprocal", dtype="float64").model({"x": X}, outputs), "float32")
    e = rms("reciprocal")
    e.Neg(e.nodes[0].output[0], output="z")
    refused(NAME, e.model({"x": X}, {**outputs, "z": [None] * 3}), "other consumers")


def test_the_input_is_needed_elsewhere() -> None:
    e = rms("reciprocal")
    e.Add("x", "y", output="z")
    before = e.model({"x": X}, {"z": [None] * 3})
    assert_same(before, fused(NAME, before, {**SPELLED, "Add": 2}), {"x": array(2, 3, 8)})
