"""Sizes that are taken apart and joined again, and those that are of another value or in another order."""

import numpy as np
import pytest

from tests.support import array, assert_same, model, node, ops, run_pass

PASS = "merge-shape-elements"
CONSTANTS = {"i0": np.asarray(0), "i1": np.asarray(1), "axes": np.asarray([0]), "eight": np.asarray([8]), "minus": np.asarray([-1])}


def sizes(order, last=(), of=("x", "x")):
    """[x.shape[0], x.shape[1], 8] in the given order, and an Expand to it."""
    nodes = []
    for i, source in enumerate(of):
        nodes += [node("Shape", [source], [f"s{i}"]), node("Gather", [f"s{i}", f"i{i}"], [f"g{i}"])]
        nodes.append(node("Unsqueeze", [f"g{i}", "axes"], [f"u{i}"]))
    return [*nodes, node("Concat", [f"u{i}" for i in order] + list(last), ["t"], axis=0), node("ConstantOfShape", ["t"], ["y"])]


def run(nodes, rank, opset=17, inputs=None):
    before = model(nodes, inputs or {"x": ["n", "s", 8]}, {"y": [None] * rank}, CONSTANTS, opset=opset)
    after, log = run_pass(before, PASS)
    feeds = {name: array(*({"n": 2, "s": 5, "m": 3}.get(d, d) for d in dims)) for name, dims in (inputs or {"x": ["n", "s", 8]}).items()}
    assert_same(before, after, feeds, exact=True)
    return dict(ops(after)), log


@pytest.mark.parametrize("opset", [13, 17])
def test_the_whole_shape(opset) -> None:
    found, log = run(sizes((0, 1), ["eight"]), 3, opset)
    assert log.applied == 1 and found == {"Shape": 1, "ConstantOfShape": 1}


def test_a_range_of_it_needs_an_opset() -> None:
    assert run(sizes((0, 1)), 2, 15)[0] == {"Shape": 1, "ConstantOfShape": 1}
    found, log = run(sizes((0, 1)), 2, 14)
    assert log.applied == 0 and found["Concat"] == 1


@pytest.mark.parametrize("order", [(1, 0), (0, 0)])
def test_another_order_stays(order) -> None:
    found, log = run(sizes(order, ["eight"]), 3)
    assert log.applied == 0 and found["Concat"] == 1


def test_sizes_of_two_values_stay() -> None:
    inputs = {"x": ["n", "s", 8], "z": ["m", 3, 8]}
    found, log = run(sizes((0, 1), ["eight"], of=("z", "x")), 3, inputs=inputs)
    assert log.applied == 0 and found["Concat"] == 1
    found, log = run(sizes((0, 1), ["eight"], of=("x", "x")), 3, inputs=inputs)
    assert log.applied == 1
