"""Products of dynamically quantized values become one operator, with the same integers in it."""

import numpy as np
import pytest

from tests.passes.fusion.expressions import Expression, refused, unmatched
from tests.passes.ort.common import MS, attributes, becomes
from tests.support import array, node, rng

NAME = "fuse-dynamic-quantize-matmul"
F = np.float32


def weight(dtype="int8", rows=8, columns=5, seed=0):
    low = -100 if dtype == "int8" else 20
    return rng(seed).integers(low, low + 200, (rows, columns)).astype(dtype)


def quantized(e: Expression, x="x", dtype="int8", scale=None, zero=None, output="y", parts=None, to=1, weights=None) -> str:
    """x W as quantize_dynamic writes it."""
    if parts is None:
        parts = [f"q{output}", f"s{output}", f"z{output}"]
        e.nodes.append(_dynamic(x, parts))
    scale = F(0.01) if scale is None else scale
    zero = np.array(3, dtype) if zero is None else zero
    product = e.MatMulInteger(parts[0], weight(dtype) if weights is None else weights, parts[2], *([] if zero is False else [zero]))
    return e.Mul(e.Cast(product, to=to), e.Mul(parts[1], scale), output=output)


def _dynamic(x, outputs):
    return node("DynamicQuantizeLinear", [x], outputs)


X = {"x": ("n", 3, 8)}
FEEDS = {"x": array(2, 3, 8)}
Y = {"y": [None] * 3}


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(
    ("scale", "zero"),
    [
        (None, None), (F([0.01]), None), (None, False), (array(5, low=0.01), np.arange(5)), (array(5, low=0.01), False),
        (array(5, low=0.01), None), (array(5, low=0.01), np.array([4])),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_alone(dtype, scale, zero, bias) -> None:
    e = Expression()
    zero = zero.astype(dtype) if isinstance(zero, np.ndarray) else zero
    y = quantized(e, dtype=dtype, scale=scale, zero=zero, output="m" if bias else "y")
    if bias:
        e.Add(array(5, seed=4), y, output="y")
    after = becomes(NAME, e.model(X, Y), {"DynamicQuantizeMatMul": 1}, FEEDS, rtol=1e-6)
    attributes(after, "DynamicQuantizeMatMul")


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_two_products_of_one_value(dtype) -> None:
    e = Expression()
    parts = ["q", "s", "z"]
    e.nodes.append(_dynamic("x", parts))
    quantized(e, dtype=dtype, parts=parts, output="y")
    e.Add(quantized(e, dtype=dtype, parts=parts, scale=array(5, low=0.01), output="m"), array(5), output="w")
    before = e.model(X, {"y": [None] * 3, "w": [None] * 3})
    becomes(NAME, before, {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 2}, FEEDS, rtol=1e-6)


def test_a_sum_that_is_no_bias() -> None:
    e = Expression()
    e.Add(quantized(e, output="m"), array(3, 5), output="y")
    becomes(NAME, e.model(X, Y), {"DynamicQuantizeMatMul": 1, "Add": 1}, FEEDS, rtol=1e-6)


def test_refusals() -> None:
    e = Expression()
    quantized(e)
    integers = e.nodes[1].output[0]
    e.Identity(integers, output="w")
    refused(NAME, e.model(X, {**Y, "w": [None] * 3}, types={"w": 6}), "the product 'v1' has 2 consumers: v2, w")
    e = Expression()
    quantized(e, scale="s")
    refused(NAME, e.model({**X, "s": ()}, Y), "the scale 's' of the weight is not constant")
    e = Expression()
    quantized(e, scale=array(3, 1))
    refused(NAME, e.model(X, Y), "neither one nor one a column")
    e = Expression()
    quantized(e, zero=np.arange(5).astype("int8"))
    refused(NAME, e.model(X, Y), "more zero points than scales")
    e = Expression()
    quantized(e, weights="w")
    refused(NAME, e.model({**X, "w": (2, 8, 5)}, Y, types={"w": 3}), "not known to be a matrix")


def test_other_scales() -> None:
    e = Expression()
    e.nodes.append(_dynamic("x", ["q", "s", "z"]))
    product = e.MatMulInteger("q", weight(), "z", np.array(0, np.int8))
    e.Mul(e.Cast(product, to=1), e.Mul(F(0.1), F(0.2)), output="y")
    unmatched(NAME, e.model(X, Y, opsets=MS))
