"""If of which one branch leads to a rank that a later operator cannot take."""

import numpy as np
import pytest
from onnx import helper

from tests.passes.folding.test_inline_constant_if import branch, choice
from tests.support import array, assert_same, model, node, ops, run_pass

WEIGHTS = {
    "last": np.asarray([-1]), "one": np.asarray([1]), "zero": np.asarray([0]), "two": np.asarray(2),
    "w": array(1, 12, 4), "r": array(1, 12, 3, seed=1),
}


def bare(name, nodes, output):
    made = branch(name, nodes, [output])
    made.output[0].CopyFrom(helper.make_tensor_value_info(output, 1, None))
    return made


def squeezed():
    """A squeeze of the last dimension of x where it is 1: as the exporter of torch writes it."""
    then, other = bare("then", [node("Squeeze", ["x", "last"], ["t"])], "t"), bare("else", [node("Identity", ["x"], ["u"])], "u")
    return [
        node("Shape", ["x"], ["shape"]), node("Gather", ["shape", "last"], ["size"]), node("Equal", ["size", "one"], ["is_one"]),
        choice("is_one", ["a"], then, other),
    ]


def lstm(x):
    return [
        node("Unsqueeze", [x, "zero"], ["sequence"]),
        helper.make_node("LSTM", ["sequence", "w", "r"], ["", "h"], hidden_size=3), node("Relu", ["h"], ["y"]),
    ]


def test_an_lstm_settles_the_rank() -> None:
    before = model([*squeezed(), *lstm("a")], {"x": ["n", 4, "s"]}, {"y": [1, "n", 3]}, WEIGHTS)
    after, log = run_pass(before, "inline-forced-if")
    assert log.applied == 1 and dict(ops(after)) == {"Squeeze": 1, "Unsqueeze": 1, "LSTM": 1, "Relu": 1}
    assert_same(before, after, {"x": array(2, 4, 1)}, exact=True)


@pytest.mark.parametrize("inside", [True, False])
def test_the_rank_is_asked_for_on_the_way(inside) -> None:
    """A second If adds the batch that a value of rank 1 lacks; the LSTM leaves neither it nor the first one a choice."""
    wide, plain = bare("wide", [node("Unsqueeze", ["a", "zero"], ["p"])], "p"), bare("plain", [node("Identity", ["a"], ["q"])], "q")
    asked = [
        node("Shape", ["a"], ["ashape"]), node("Size", ["ashape"], ["rank"]), node("Equal", ["rank", "two"], ["flat"]),
        node("Not", ["flat"], ["not_flat"]), choice("not_flat", ["b"], wide, plain),
    ]
    nodes = [*squeezed(), *asked, *lstm("b")]
    if inside:
        nodes = [choice("c", ["out"], bare("all", nodes, "y"), bare("none", [node("Identity", ["w"], ["v"])], "v"))]
    types = {"c": 9}
    inputs = {"x": ["n", 4, "s"], **({"c": []} if inside else {})}
    before = model(nodes, inputs, {"out" if inside else "y": [1, None, None]}, WEIGHTS, types=types)
    feeds = {"x": array(2, 4, 1), **({"c": np.asarray(True)} if inside else {})}
    after, log = run_pass(before, "inline-forced-if")
    assert log.applied == 1
    assert_same(before, after, feeds, exact=True)
    again, log = run_pass(after, "inline-constant-if")
    assert log.applied == 1
    assert_same(before, again, feeds, exact=True)


def test_without_such_an_operator_both_branches_stay() -> None:
    nodes = [*squeezed(), node("Relu", ["a"], ["b"]), node("Size", ["b"], ["y"])]
    before = model(nodes, {"x": ["n", 4, "s"]}, {"y": []}, WEIGHTS, types={"y": 7})
    after, log = run_pass(before, "inline-forced-if")
    assert log.applied == 0 and ops(after) == ops(before)
    for size in (1, 2):
        assert_same(before, after, {"x": array(2, 4, size)}, exact=True)


def test_an_operator_that_runs_in_one_branch_only_settles_nothing() -> None:
    inner = bare("inner", [*lstm("a")], "y")
    other = bare("other", [node("Identity", ["w"], ["v"])], "v")
    nodes = [*squeezed(), choice("c", ["out"], inner, other)]
    before = model(nodes, {"x": ["n", 4, "s"], "c": []}, {"out": [1, None, None]}, WEIGHTS, types={"c": 9})
    after, log = run_pass(before, "inline-forced-if")
    assert log.applied == 0 and ops(after) == ops(before)
    assert_same(before, after, {"x": array(2, 4, 3), "c": np.asarray(False)}, exact=True)


def test_branches_of_one_rank_stay() -> None:
    then, other = bare("then", [node("Relu", ["x"], ["t"])], "t"), bare("else", [node("Identity", ["x"], ["u"])], "u")
    nodes = [choice("c", ["a"], then, other), helper.make_node("LSTM", ["a", "w", "r"], ["", "y"], hidden_size=3)]
    before = model(nodes, {"x": ["s", "n", 4], "c": []}, {"y": [1, "n", 3]}, WEIGHTS, types={"c": 9})
    after, log = run_pass(before, "inline-forced-if")
    assert log.applied == 0 and ops(after) == ops(before)
