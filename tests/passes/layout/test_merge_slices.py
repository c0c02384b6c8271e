"""Slices in a row: what they take is taken at once, to the element."""

import itertools

import numpy as np
import pytest

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "merge-slices"


def slices(first, second):
    nodes, weights, source = [], {}, "x"
    for i, (arguments, target) in enumerate(((first, "a"), (second, "y"))):
        names = []
        for what, data in zip("bets", arguments):
            names.append(f"{what}{i}" if data is not None else "")
            if data is not None:
                weights[names[-1]] = np.asarray(data)
        while not names[-1]:
            names.pop()
        nodes.append(node("Slice", [source, *names], [target]))
        source = target
    return nodes, weights


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (([1], [3], [0], None), ([0], [9], [1], [2])),
        (([3], [-9], [-1], [-1]), ([1], [2], [0], None)),
        (([0, 1], [2, 9], None, None), ([-2], [99], [2], None)),
        (([1], [3], [0], None), ([1], [2], [0], None)),
        (([1], [3], [-1], None), ([1], [2], [2], None)),
        (([0, 1], [3, 9], [0, 2], [1, 2]), ([1, -1], [9, -9], [2, 0], [1, -1])),
    ],
)
def test_along_other_and_equal_axes(first, second) -> None:
    nodes, weights = slices(first, second)
    before = model(nodes, {"x": [4, 5, 6]}, ["y"], weights)
    after, log = run_pass(before, NAME)
    assert ops(after) == {"Slice": 1} and not log.refusals
    assert_same(before, after, {"x": array(4, 5, 6)}, exact=True)


BOUNDS = (-9, -4, -1, 0, 2, 9)


@pytest.mark.parametrize("known", [True, False])
def test_all_bounds_and_steps(known: bool) -> None:
    """One Slice for each pair, all in one model, over one axis."""
    cuts = [*itertools.product(BOUNDS, BOUNDS, (1, 2, -1, -3))]
    chosen = [(cuts[i], cuts[(7 * i + j) % len(cuts)]) for i in range(len(cuts)) for j in (3, 50, 101)]
    nodes, weights, outputs = [], {f"v{v}": np.asarray([v]) for v in (*BOUNDS, 1, -3)}, []
    weights["axis"] = np.asarray([0])
    for i, pair in enumerate(chosen):
        source = "x"
        for j, (start, end, step) in enumerate(pair):
            nodes.append(node("Slice", [source, f"v{start}", f"v{end}", "axis", f"v{step}"], [f"y{i}_{j}"]))
            source = f"y{i}_{j}"
        outputs.append(source)
    before = model(nodes, {"x": [5 if known else "n"]}, outputs, weights)
    after, _ = run_pass(before, NAME)
    count = ops(after)["Slice"]
    assert count == len(chosen) if known else len(chosen) < count < 2 * len(chosen)
    for size in (5,) if known else (0, 1, 2, 5, 12):
        assert_same(before, after, {"x": array(size)}, exact=True)


def test_a_size_that_is_not_known() -> None:
    nodes, weights = slices(([1], [-1], [0], None), ([0], [2], [0], None))
    before = model(nodes, {"x": ["n"]}, ["y"], weights)
    after, log = run_pass(before, NAME)
    assert ops(after) == {"Slice": 2} and "hangs on its size" in reasons(log)[0]
    nodes, weights = slices(([1], [2**63 - 1], [0], None), ([0], [2**31 - 1], [0], None))
    assert ops(run_pass(model(nodes, {"x": ["n"]}, ["y"], weights), NAME)[0]) == {"Slice": 1}


def test_bounds_as_attributes() -> None:
    nodes = [node("Slice", ["x"], ["a"], starts=[1], ends=[9], axes=[0]), node("Slice", ["a"], ["y"], starts=[0, 1], ends=[2, 3])]
    before = model(nodes, {"x": [5, 6]}, ["y"], opset=9)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Slice": 1}
    assert_same(before, after, {"x": array(5, 6)}, exact=True)


def test_other_consumers() -> None:
    nodes, weights = slices(([1], [3], [0], None), ([0], [9], [1], [2]))
    before = model(nodes, {"x": [4, 5, 6]}, ["y", "a"], weights)
    after, log = run_pass(before, NAME)
    assert ops(after) == {"Slice": 2} and "graph output" in reasons(log)[0]
