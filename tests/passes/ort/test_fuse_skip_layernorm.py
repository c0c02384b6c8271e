"""A residual Add goes into the normalization behind it, with a bias, and gives the sum out where it is needed."""

import pytest

from tests.passes.fusion.expressions import Expression, refused, unmatched
from tests.passes.ort.common import attributes, becomes
from tests.support import array

NAME = "fuse-skip-layernorm"
SHAPE = ("n", "s", 8)
X = {"x": SHAPE, "r": SHAPE}
Y = {"y": [None] * 3}
FEEDS = {"x": array(2, 3, 8), "r": array(2, 3, 8, seed=1)}
KINDS = {"LayerNormalization": "SkipLayerNormalization", "RMSNormalization": "SkipSimplifiedLayerNormalization"}


def normalized(kind="LayerNormalization", *, total=None, scale=None, bias=True, output="y", dtype="float32", **given) -> Expression:
    e = Expression(dtype, 23)
    summed = total(e) if total else e.Add("x", "r")
    scale = array(8, seed=2, dtype=dtype) if scale is None else scale
    e.op(kind, summed, scale, *([array(8, seed=3, dtype=dtype)] if bias and kind != "RMSNormalization" else []), output=output, **given)
    return e


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [{}, {"bias": False}, {"axis": 2, "epsilon": 1e-3}])
def test_fused(kind, given) -> None:
    after = becomes(NAME, normalized(kind, **given).model(X, Y), {KINDS[kind]: 1}, FEEDS)
    assert attributes(after, KINDS[kind])["epsilon"] == pytest.approx(given.get("epsilon", 1e-5))


@pytest.mark.parametrize("kind", KINDS)
def test_matrices(kind) -> None:
    before = normalized(kind).model({"x": ("n", 8), "r": ("n", 8)}, {"y": [None] * 2})
    becomes(NAME, before, {KINDS[kind]: 1}, {k: v[0] for k, v in FEEDS.items()})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("swap", [False, True])
def test_bias(kind, swap) -> None:
    def total(e):
        biased = e.Add(e.Neg("x"), array(8, seed=5))
        return e.Add("r", biased) if swap else e.Add(biased, "r")

    becomes(NAME, normalized(kind, total=total).model(X, Y), {"Neg": 1, KINDS[kind]: 1}, FEEDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_used_before_the_normalization(kind) -> None:
    def total(e):
        summed = e.Add("x", "r")
        e.Neg(summed, output="w")
        return summed

    e = normalized(kind, total=total)
    e.Add("y", "v0", output="u")
    before = e.model(X, {**Y, "w": [None] * 3, "u": [None] * 3})
    after = becomes(NAME, before, {"Neg": 1, KINDS[kind]: 1, "Add": 1}, FEEDS)
    (fused,) = [n for n in after.graph.node if n.op_type == KINDS[kind]]
    assert [bool(o) for o in fused.output] == [True, False, False, True]


def test_the_sum_is_a_graph_output() -> None:
    e = normalized(total=lambda e: e.Add("x", "r", output="w"))
    becomes(NAME, e.model(X, {**Y, "w": [None] * 3}), {"SkipLayerNormalization": 1}, FEEDS)


def test_half_precision() -> None:
    before = normalized(dtype="float16").model(X, Y)
    becomes(NAME, before, {"SkipLayerNormalization": 1}, {k: v.astype("float16") for k, v in FEEDS.items()}, rtol=5e-3)


def test_refusals() -> None:
    refused(NAME, normalized().model({"x": SHAPE, "r": (1, "s", 8)}, Y), "not known to be of one shape")
    refused(NAME, normalized().model({"x": (2, 2, 3, 8), "r": (2, 2, 3, 8)}, {"y": [None] * 4}), "a matrix or a batch of them")
    refused(NAME, normalized(axis=1, scale=array(3, 8), bias=False).model({"x": (2, 3, 8), "r": (2, 3, 8)}, Y), "more axes than the last")
    refused(NAME, normalized(scale=array(1), bias=False).model(X, Y), "its scale is not a vector")
    refused(NAME, normalized(stash_type=11).model(X, Y), "another type than float32")
    refused(NAME, normalized(dtype="float64").model(X, Y), "float32 or float16")
    e = Expression(opset=23)
    scale = e.Neg("k")
    e.LayerNormalization(e.Add("x", "r"), scale, output="y")
    refused(NAME, e.model({**X, "k": (8,)}, Y), "is computed")
    e = normalized()
    e.nodes[-1].output.append("mean")
    refused(NAME, e.model(X, {**Y, "mean": [None] * 3}), "output 'mean' is used")


def test_what_is_no_residual() -> None:
    unmatched(NAME, normalized(total=lambda e: e.Add("x", array(8))).model({"x": SHAPE}, Y))
    unmatched(NAME, normalized(total=lambda e: e.Mul("x", "r")).model(X, Y))
    e = Expression()
    e.Relu(e.Add("x", "r"), output="y")
    unmatched(NAME, e.model(X, Y))
