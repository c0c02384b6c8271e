"""Transposes and factors go into FusedMatMul; what is better left to others stays."""

import itertools

import numpy as np
import pytest

from tests.passes.fusion.expressions import Expression, refused, unmatched
from tests.passes.ort.common import MS, attributes, becomes
from tests.support import array

NAME = "fuse-matmul"


def product(a="x", b="z", before=None, after=None, dtype="float32", **kwargs) -> Expression:
    e = Expression(dtype, **kwargs)
    left, right = before(e, a, b) if before else (a, b)
    e.MatMul(left, right, output="p" if after else "y")
    if after:
        after(e, "p")
    return e


@pytest.mark.parametrize(
    ("perm", "shape", "given"),
    [
        ((0, 1, 3, 2), (2, 3, 5, 4), {"trans"}), ((1, 2, 0, 3), (4, 2, 3, 5), {"transBatch"}),
        ((1, 2, 3, 0), (5, 2, 3, 4), {"trans", "transBatch"}),
    ],
)
@pytest.mark.parametrize("side", "AB")
def test_transposes(perm, shape, given, side) -> None:
    e = Expression()
    turned = e.Transpose("t", perm=perm)  # [2, 3, 4, 5]
    e.MatMul(*((turned, "o") if side == "A" else ("o", turned)), output="y")
    other = (2, 3, 5, 6) if side == "A" else (2, 3, 6, 4)
    before = e.model({"t": shape, "o": other}, {"y": [None] * 4})
    after = becomes(NAME, before, {"FusedMatMul": 1}, {"t": array(*shape), "o": array(*other, seed=1)})
    assert attributes(after, "FusedMatMul") == {f"{g}{side}": 1 for g in given}


@pytest.mark.parametrize(("a", "b"), list(itertools.product(["", "swap", "batch", "both"], repeat=2))[1:])
def test_both_sides(a, b) -> None:
    perms = {"swap": (0, 2, 1), "batch": (1, 0, 2), "both": (1, 2, 0)}
    e = Expression()
    stored = {}
    for name, how, shape in (("x", a, (2, 4, 5)), ("z", b, (2, 5, 6))):
        stored[name] = tuple(np.transpose(np.empty(shape), np.argsort(perms[how])).shape) if how else shape
    sides = [e.Transpose(n, perm=perms[how]) if how else n for n, how in (("x", a), ("z", b))]
    e.MatMul(*sides, output="y")
    feeds = {n: array(*s, seed=i) for i, (n, s) in enumerate(stored.items())}
    becomes(NAME, e.model(stored, {"y": [None] * 3}), {"FusedMatMul": 1}, feeds)


def test_matrices_and_two_transposes_that_cancel() -> None:
    e = Expression()
    e.MatMul(e.Transpose("x", perm=[1, 0]), e.Transpose(e.Transpose("z", perm=[1, 0]), perm=[1, 0]), output="y")
    after = becomes(NAME, e.model({"x": (4, 3), "z": (4, 5)}, {"y": [None] * 2}), {"FusedMatMul": 1})
    assert attributes(after, "FusedMatMul") == {"transA": 1}


@pytest.mark.parametrize(
    ("before", "after", "alpha"),
    [
        (lambda e, a, b: (e.Mul(a, 0.5), b), None, 0.5),
        (lambda e, a, b: (e.Mul(0.5, a), e.Div(b, 4.0)), None, 0.125),
        (None, lambda e, p: e.Div(p, 8.0, output="y"), 0.125),
        (None, lambda e, p: e.Mul(np.float32([[3]]), p, output="y"), 3),
        (lambda e, a, b: (e.Mul(a, 0.5), e.Mul(b, 0.25)), lambda e, p: e.Mul(p, 3.0, output="y"), 0.375),
        (lambda e, a, b: (e.Mul(e.Transpose(a, perm=[0, 2, 1]), 0.5), b), None, 0.5),
        (lambda e, a, b: (e.Transpose(e.Mul(a, 0.5), perm=[0, 2, 1]), b), None, 0.5),
    ],
)
def test_factors(before, after, alpha) -> None:
    feeds = {"x": array(2, 4, 4), "z": array(2, 4, 5)}
    model = product(before=before, after=after).model({"x": ("n", 4, 4), "z": ("n", 4, 5)}, {"y": [None] * 3})
    assert attributes(becomes(NAME, model, {"FusedMatMul": 1}, feeds), "FusedMatMul")["alpha"] == alpha


def test_an_operator_that_is_fused_already() -> None:
    e = Expression()
    fused = e.op("FusedMatMul", e.Transpose("x", perm=[0, 2, 1]), "z", domain="com.microsoft", transA=1, alpha=0.5)
    e.Mul(fused, 4.0, output="y")
    before = e.model({"x": (2, 4, 3), "z": (2, 3, 5)}, {"y": [None] * 3}, opsets=MS)
    assert attributes(becomes(NAME, before, {"FusedMatMul": 1}), "FusedMatMul") == {"alpha": 2.0}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types(dtype) -> None:
    model = product(before=lambda e, a, b: (e.Mul(a, 0.5), b), dtype=dtype).model({"x": (3, 4), "z": (4, 5)}, ["y"])
    becomes(NAME, model, {"FusedMatMul": 1}, rtol=2e-3 if dtype == "float16" else 1e-6)


def test_refusals() -> None:
    shapes = {"x": (2, 4, 3), "z": (2, 3, 5)}
    swap = lambda e, a, b: (a, e.Transpose(b, perm=[0, 2, 1], output="t"))  # noqa: E731
    e = product(before=swap)
    e.Neg("t", output="w")
    used = e.model({"x": (2, 4, 3), "z": (2, 5, 3)}, {"y": [None] * 3, "w": [None] * 3})
    refused(NAME, used, "the result of Transpose 't' has 2 consumers: y, w")
    scaled = product(before=lambda e, a, b: (e.Mul(a, 2.0), b), after=lambda e, p: e.Add(p, array(5), output="y"))
    refused(NAME, scaled.model(shapes, {"y": [None] * 3}), "one Gemm with the bias behind it")
    vector = product(before=lambda e, a, b: (e.Mul(a, 2.0), b)).model({"x": (4,), "z": (4, 5)}, {"y": [None]})
    refused(NAME, vector, "not known to be matrices")
    ranks = product(before=lambda e, a, b: (a, e.Transpose(b, perm=[1, 0, 2]))).model({"x": (4, 3), "z": (3, 2, 5)}, {"y": [None] * 3})
    refused(NAME, ranks, "different ranks")
    large = product(before=lambda e, a, b: (e.Mul(a, 1e30), e.Mul(b, 1e30))).model(shapes, {"y": [None] * 3})
    refused(NAME, large, "not finite")
    e = Expression()
    quantized = e.DequantizeLinear("q", np.float32(0.1), np.uint8(128))
    e.MatMul(e.Mul("x", 2.0), quantized, output="y")
    refused(NAME, e.model({"x": (4, 3), "q": (3, 5)}, {"y": [None] * 2}, types={"q": 2}), "it is quantized")


@pytest.mark.parametrize(
    "before",
    [
        None,
        lambda e, a, b: (e.Transpose(a, perm=[2, 1, 0]), b),
        lambda e, a, b: (e.Mul(a, array(3)), b),
        lambda e, a, b: (e.Mul(a, np.full((1, 1, 1, 1), 2, "f4")), b),
        lambda e, a, b: (e.Div(2.0, a), b),
        lambda e, a, b: (e.Div(a, 0.0), b),
    ],
)
def test_what_does_not_fit(before) -> None:
    rank = 4 if before is not None and before.__code__.co_consts.count((1, 1, 1, 1)) else 3
    unmatched(NAME, product(before=before).model({"x": (3, 3, 3), "z": (3, 3, 5)}, {"y": [None] * rank}))


def test_a_factor_of_a_double_product_must_be_single_precision() -> None:
    """FusedMatMul takes its factor as a float32."""
    for divisor, reason in ((3.0, "its factor would lose digits"), (4.0, None)):
        e = product(after=lambda e, p, d=divisor: e.Div(p, d, output="y"), dtype="float64")
        before = e.model({"x": (2, 3), "z": (3, 4)}, {"y": [None] * 2})
        if reason:
            refused(NAME, before, reason)
        else:
            becomes(NAME, before, {"FusedMatMul": 1})
