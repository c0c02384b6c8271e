"""Expand and Tile before operators that broadcast."""

import numpy as np
import pytest

from tests.support import array, assert_same, model, node, ops, run_pass

X = {"x": ["n", 4, 5], "z": [4, 1]}
EXPAND = node("Expand", ["z", "shape"], ["e"])


def check(nodes, left, shape=(1, 1, 5), inputs=X, feeds=None, min_run=1, **weights):
    weights = {"shape": np.asarray(shape), **weights}
    used = {k: v for k, v in weights.items() if any(k in n.input for n in nodes)}
    before = model(nodes, inputs, ["y"], used)
    after, _ = run_pass(before, "eliminate-broadcasts", min_run=min_run)
    assert dict(ops(after)) == left, ops(after)
    assert_same(before, after, feeds or {"x": array(3, 4, 5), "z": array(4, 1, seed=1)}, exact=True)


@pytest.mark.parametrize("shape", [(1, 1, 5), (4, 5), (1, 5), (5,), (1,)])
def test_the_other_input_has_the_shape(shape) -> None:
    check([EXPAND, node("Sub", ["e", "x"], ["y"])], {"Sub": 1}, shape)
    check([EXPAND, node("Greater", ["x", "e"], ["g"]), node("Where", ["g", "e", "x"], ["y"])], {"Greater": 1, "Where": 1}, shape)


def test_tile() -> None:
    check([node("Tile", ["z", "reps"], ["e"]), node("Mul", ["x", "e"], ["y"])], {"Mul": 1}, reps=np.asarray([1, 5]))
    both = {"x": [2, 4, 5], "z": [4, 5]}
    nodes = [node("Tile", ["z", "reps"], ["e"]), node("Mul", ["x", "e"], ["y"])]
    check(nodes, {"Mul": 1}, inputs=both, feeds={"x": array(2, 4, 5), "z": array(4, 5)}, reps=np.asarray([1, 1]))
    check([node("Tile", ["z", "reps"], ["e"]), node("Mul", ["x", "e"], ["y"])], {"Tile": 1, "Mul": 1},
          inputs={"x": [4, 4], "z": [4, 2]}, feeds={"x": array(4, 4), "z": array(4, 2)}, reps=np.asarray([1, 2]))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (7, 1, 1, 1)])
def test_the_other_input_has_not(shape) -> None:
    """Of the first size of x nothing is known: it may be 1."""
    check([EXPAND, node("Sub", ["e", "x"], ["y"])], {"Expand": 1, "Sub": 1}, shape)


def test_two_that_need_each_other() -> None:
    nodes = [EXPAND, node("Expand", ["z", "shape"], ["f"]), node("Mul", ["e", "f"], ["y"])]
    before = model(nodes, {"z": [4, 1]}, ["y"], {"shape": np.asarray([4, 5])})
    after, _ = run_pass(before, "eliminate-broadcasts", min_run=1)
    assert ops(after) == {"Expand": 1, "Mul": 1}
    assert_same(before, after, {"z": array(4, 1)}, exact=True)


def test_other_consumers_keep_theirs() -> None:
    nodes = [EXPAND, node("Sub", ["e", "x"], ["a"]), node("ReduceSum", ["e"], ["b"], keepdims=0), node("Add", ["a", "b"], ["y"])]
    check(nodes, {"Expand": 1, "Sub": 1, "ReduceSum": 1, "Add": 1})


@pytest.mark.parametrize(
    "small, full, left",
    [
        ((1, 28, 1, 32), (1, 28, 28, 32), {"Expand": 1, "Mul": 1}),  # 0.6 times as fast without the Expand
        ((1, 32, 1, 1), (1, 32, 28, 28), {"Mul": 1}),  # 1.5 times
        ((1, 1, 28, 28), (1, 32, 28, 28), {"Mul": 1}),
        ((1, 1, 256), (1, 64, 256), {"Mul": 1}),
        ((1, 256, 1), (1, 256, 16), {"Expand": 1, "Mul": 1}),
        ((1, 16, 1), (1, 16, 16), {"Mul": 1}),  # few
    ],
)
def test_only_over_long_runs(small, full, left) -> None:
    feeds = {"x": array(*full), "z": array(*small)}
    check([EXPAND, node("Mul", ["x", "e"], ["y"])], left, full, {n: list(a.shape) for n, a in feeds.items()}, feeds, min_run=128)
