"""The reference's own noise, and the figures of one comparison."""

import math

import ml_dtypes
import numpy as np
import pytest

from graphopt import runtime
from graphopt.verification import Reference, Sample
from graphopt.verification.metrics import CAP, HARD_CAP, cap_of, compare, identical, leaves
from graphopt.verification.original import RUNTIME_FACTOR, _leaf_noise
from graphopt.verification.perturb import perturbed, shaken
from tests.verification.small import F, H, I, const, info, linear, model, node, weight

EPS = float(np.finfo(np.float32).eps)


def test_only_floats_that_are_no_whole_numbers_are_changed():
    feeds = {
        "x": np.linspace(0.1, 1, 50, dtype=np.float32), "ids": np.arange(4), "pixels": np.arange(9, dtype=np.float32),
        "limit": np.asarray(46.875, np.float32),
    }  # fmt: skip
    changed = perturbed(feeds, EPS, 0)
    gap = np.abs(changed["x"] / feeds["x"] - 1)
    assert 0 < gap.max() <= 2.1 * EPS and changed["x"].dtype == np.float32
    for name in ("ids", "pixels", "limit"):
        assert changed[name] is feeds[name]
    assert perturbed({"ids": np.arange(4)}, EPS, 0) is None


def test_a_model_of_integers_is_shaken_at_its_lookup_and_not_at_its_mask():
    """A mask that is off by one rounding and then multiplied by -3e38 would be noise without bounds."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"]), node("Cast", ["mask"], ["m"], to=F), node("Sub", ["one", "m"], ["inv"]),
        node("Mul", ["inv", "big"], ["bias"]), node("ReduceSum", ["e", "axes"], ["s"], keepdims=0), node("Add", ["s", "bias"], ["l"]),
        node("Softmax", ["l"], ["y"]),
    ]  # fmt: skip
    constants = [const("table", weight(20, 8)), const("one", 1.0), const("big", -3e38), const("axes", [2], np.int64)]
    data = model(nodes, [info("ids", I, ["N", "T"]), info("mask", I, ["N", "T"])], [info("y", F, None)], constants)
    feeds = {"ids": np.arange(12).reshape(2, 6), "mask": np.array([[1] * 6, [1] * 4 + [0] * 2])}
    plain = runtime.run(runtime.session(data, optimize=False, threads=1), feeds)["y"]
    moved = runtime.run(runtime.session(shaken(data, EPS, 0), optimize=False, threads=1), feeds)["y"]
    gap = np.abs(plain - moved).max()
    assert 0 < gap < 1e-5
    (noise,) = Reference(data, threads=1).noise(Sample(feeds, "test"))["y"]
    assert 0 < noise.rounding < 1e-5


def test_noise_of_an_ill_conditioned_model_is_larger():
    def of(factor):
        data = model(
            [node("Mul", ["x", "k"], ["a"]), node("Sin", ["a"], ["y"])], [info("x", F, ["N"])], [info("y", F, None)], [const("k", factor)]
        )
        x = np.random.default_rng(0).uniform(0.5, 1, 64).astype(np.float32)
        return Reference(data, threads=1).noise(Sample({"x": x}, "test"))["y"][0].rounding

    assert of(1.0) < 1e-6 < 1e-4 < of(5e3)


def test_half_precision_is_perturbed_by_its_own_eps():
    assert Reference(linear(weight(), dtype=H), threads=1).eps == float(np.finfo(np.float16).eps)
    assert Reference(linear(weight()), threads=1).eps == EPS
    cast = model([node("Cast", ["x"], ["h"], to=H), node("Cast", ["h"], ["y"], to=F)], [info("x", F, ["N"])], [info("y", F, None)])
    assert Reference(cast, threads=1).eps == float(np.finfo(np.float16).eps)


def test_the_runtimes_noise_counts_only_as_far_as_rounding_makes_it_plausible():
    b = np.linspace(-1, 1, 100, dtype=np.float32)
    changed = b * np.float32(1 + EPS)
    noise = _leaf_noise(b, [b * np.float32(1.5), changed, None], 0.0, EPS)
    assert noise.runtime == pytest.approx(0.5, rel=1e-3)
    assert float(np.max(noise.absolute)) <= 1.001 * RUNTIME_FACTOR * 4 * EPS
    near = _leaf_noise(b, [b * np.float32(1 + 20 * EPS), changed, None], 0.0, EPS)
    assert float(np.max(near.absolute)) == pytest.approx(20 * EPS, rel=0.1)
    assert _leaf_noise(b, [None, b[:50], None], 0.0, EPS).unstable


def test_noise_never_excuses_more_than_the_cap():
    b = np.linspace(0.5, 1, 100, dtype=np.float32)
    assert compare(b + np.float32(0.5 * CAP), b, rtol=1e-4, noise=1.0).worst <= 1
    assert compare(b + np.float32(1.5 * CAP), b, rtol=1e-4, noise=1.0).worst > 1
    assert compare(b + np.float32(1.2 * HARD_CAP), b, rtol=1e-4, noise=1.0, rounding=0.9).worst > 1
    assert cap_of(EPS, 0.5) == HARD_CAP and cap_of(EPS) == CAP


def test_the_floor_is_relative():
    b = np.full(100, 1e-20, np.float32)
    b[0] = 1.0
    assert compare(b * np.float32(1.5) - np.float32(0.5) * (b == 1), b, rtol=1e-4).worst < 1  # 1e-20 beside 1 is nothing
    tiny = b * np.float32(1e-12)
    assert compare(tiny * np.float32(1.01), tiny, rtol=1e-4).worst > 1
    zero = np.zeros(4, np.float32)
    assert compare(zero + np.float32(1e-5), zero, rtol=1e-4).worst > 1
    assert compare(zero + np.float32(1e-5), zero, rtol=1e-4, usual=100.0).worst < 1


def test_bits_and_dtypes():
    a = np.array([0.0, np.nan, 1.0], np.float32)
    assert identical(a, a.copy()) and not identical(a, a.astype(np.float64))
    assert not identical(np.array([0.0], np.float32), np.array([-0.0], np.float32))
    assert identical(np.array(["a"], object), np.array(["a"], object)) and not identical(np.array(["a"], object), np.array(["b"], object))
    half = np.array([1.0, 2.0], ml_dtypes.bfloat16)
    assert compare(half, half, rtol=1e-4).worst == 0 and compare(half * 2, half, rtol=1e-2).worst > 1
    assert compare(np.array([1]), np.array([2]), rtol=1.0).worst == math.inf
    huge = np.array([3e38, -3e38], np.float32)
    assert compare(-huge, huge, rtol=1e-4).worst > 1


def test_leaves_of_nested_outputs():
    value = [{"cat": 0.1, "dog": 0.9}, {"cat": 0.2, "dog": 0.8}]
    (_, keys), (_, rows) = leaves(value)
    assert list(keys) == ["cat", "dog"] and rows.shape == (2, 2)
    ragged = leaves([np.ones(2), np.ones(3), None])
    assert [p for p, _ in ragged] == [":length", "[0]", "[1]", "[2]:none"]
    assert int(leaves([])[0][1]) == 0
