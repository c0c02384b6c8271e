"""Initial states of zero are left out; any other, and one that is not known, stays."""

import numpy as np
import pytest
from onnx import helper

from tests.support import array, assert_same, model, node, ops, run_pass

PASS = "eliminate-zero-states"
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
X = {"x": array(5, 2, 3)}


def recurrent(kind, state, nodes=(), constants=None, opset=17, inputs=None):
    gates = GATES[kind]
    states = [state] * (2 if kind == "LSTM" else 1)
    made = helper.make_node(kind, ["x", "w", "r", "", "", *states], ["", "y"], hidden_size=4)
    weights = {"w": array(1, 4 * gates, 3), "r": array(1, 4 * gates, 4, seed=1), **(constants or {})}
    return model([*nodes, made], {"x": ["s", "n", 3], **(inputs or {})}, {"y": [1, "n", 4]}, weights, opset=opset)


def states(proto):
    return [name for n in proto.graph.node for name in n.input[5:7] if n.op_type in GATES and name]


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("opset", [11, 14, 22])
def test_a_constant(kind, opset) -> None:
    before = recurrent(kind, "h", constants={"h": np.zeros((1, 2, 4), np.float32)}, opset=opset)
    after, log = run_pass(before, PASS)
    assert log.applied == 1 and not states(after) and [i.name for i in after.graph.initializer] == ["w", "r"]
    assert_same(before, after, X, exact=True)


@pytest.mark.parametrize("filled", [True, False])
def test_zeros_that_are_made_for_the_batch(filled) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]), node("Gather", ["s", "one"], ["n"]), node("Concat", ["two", "n", "four"], ["t"], axis=0),
        node("ConstantOfShape", ["t"], ["z"]) if filled else node("Expand", ["zero", "t"], ["z"]),
        node("Split", ["z", "halves"], ["h", "other"], axis=0),
    ]
    constants = {
        "one": np.asarray([1]), "two": np.asarray([2]), "four": np.asarray([4]), "halves": np.asarray([1, 1]), "zero": np.float32(0),
    }
    before = recurrent("LSTM", "h", nodes, constants)
    after, log = run_pass(before, PASS)
    assert log.applied == 1 and dict(ops(after)) == {"LSTM": 1}
    assert_same(before, after, X, exact=True)


def test_one_of_two() -> None:
    proto = recurrent("LSTM", "h", constants={"h": np.zeros((1, 2, 4), np.float32), "c": array(1, 2, 4)})
    proto.graph.node[0].input[6] = "c"
    after, log = run_pass(proto, PASS)
    assert log.applied == 1 and states(after) == ["c"]
    assert_same(proto, after, X, exact=True)


@pytest.mark.parametrize("value", [array(1, 2, 4), np.full((1, 2, 4), -0.0, np.float32), np.full((1, 2, 4), 1e-40, np.float32)])
def test_other_numbers_stay(value) -> None:
    before = recurrent("GRU", "h", constants={"h": value})
    after, log = run_pass(before, PASS)
    assert log.applied == 0 and states(after) == ["h"]


def test_an_input_and_what_is_computed_of_it_stay() -> None:
    for nodes in ([], [node("Mul", ["start", "zero"], ["h"])]):
        before = recurrent("GRU", "h" if nodes else "start", nodes, {"zero": np.float32(0)} if nodes else {}, inputs={"start": [1, "n", 4]})
        after, log = run_pass(before, PASS)
        assert log.applied == 0 and len(states(after)) == 1


def test_a_state_that_a_caller_may_override_stays() -> None:
    zeros = np.zeros((1, 2, 4), np.float32)
    made = helper.make_node("GRU", ["x", "w", "r", "", "", "h"], ["", "y"], hidden_size=4)
    weights = {"w": array(1, 12, 3), "r": array(1, 12, 4), "h": zeros}
    before = model([made], {"x": ["s", 2, 3]}, {"y": [1, 2, 4]}, weights, overridable=["h"])
    after, log = run_pass(before, PASS)
    assert log.applied == 0 and states(after) == ["h"]
