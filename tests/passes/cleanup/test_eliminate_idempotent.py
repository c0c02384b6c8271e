"""What repeats or undoes the operator before it; conditions that are negated."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

SPECIAL = np.asarray([[-0.0, 0.0, 1.5], [-2.5, np.inf, np.nan]], np.float32)
BOOL = TensorProto.BOOL


@pytest.mark.parametrize("kind", ["Relu", "Abs", "Ceil", "Floor", "Round", "Sign"])
def test_repeated(kind) -> None:
    nodes = [node(kind, ["x"], ["a"]), node(kind, ["a"], ["b"]), node(kind, ["b"], ["y"])]
    before = model(nodes, {"x": [2, 3]}, {"y": [2, 3], "a": [2, 3]})
    after, log = run_pass(before, "eliminate-idempotent")
    assert log.applied == 2 and ops(after)[kind] == 1
    assert_same(before, after, {"x": SPECIAL}, exact=True)


@pytest.mark.parametrize(("kind", "dtype"), [("Neg", "float32"), ("Neg", "int32"), ("Not", "bool"), ("BitwiseNot", "int32")])
def test_undone(kind, dtype) -> None:
    nodes = [node("Identity", ["x"], ["i"]), node(kind, ["i"], ["a"]), node(kind, ["a"], ["b"]), node("Identity", ["b"], ["y"])]
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    before = model(nodes, {"x": [2, 3]}, {"y": [2, 3], "a": [2, 3]}, opset=18, types={"x": number, "y": number, "a": number})
    after, log = run_pass(before, "eliminate-idempotent")
    assert log.applied == 1 and ops(after)[kind] == 1
    assert_same(before, after, {"x": SPECIAL if dtype == "float32" else array(2, 3).astype(dtype)}, exact=True)


def test_twice_the_same() -> None:
    nodes = [
        node("Max", ["x", "x"], ["a"]), node("Min", ["a", "a"], ["b"]), node("Neg", ["b"], ["n"]), node("Abs", ["n"], ["y"]),
        node("And", ["c", "c"], ["d"]), node("Or", ["d", "d"], ["e"]), node("Where", ["e", "b", "b"], ["z"]),
    ]
    before = model(nodes, {"x": [2, 3], "c": [3]}, {"y": [2, 3], "z": [2, 3]}, types={"c": BOOL})
    after, _ = run_pass(before, "eliminate-idempotent")
    assert set(ops(after)) == {"Abs", "Identity"}
    assert_same(before, after, {"x": SPECIAL, "c": np.asarray([True, False, True])}, exact=True)


def test_what_only_looks_alike_stays() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]), node("Abs", ["a"], ["b"]), node("Max", ["b", "x"], ["d"]), node("Max", ["d", "d", "x"], ["y"]),
        node("Where", ["c", "y", "y"], ["z"]),
    ]
    before = model(nodes, {"x": [3], "c": [2, 3]}, {"z": [2, 3]}, types={"c": BOOL})
    after, log = run_pass(before, "eliminate-idempotent")
    assert ops(after) == ops(before) and reasons(log) == ["the condition may change the shape of the result"]


# --- Not --------------------------------------------------------------------------------------------------------------


def branch(name, kind):
    return helper.make_graph([node(kind, ["x"], [name])], name, [], [helper.make_tensor_value_info(name, 1, [2, 3])])


def test_choosing_the_other_way_round() -> None:
    nodes = [
        node("Not", ["c"], ["n"]), node("Where", ["n", "x", "zero"], ["y"]), node("Where", ["n", "zero", "x"], ["w"]),
        node("Not", ["flag"], ["m"]), node("If", ["m"], ["z"], then_branch=branch("t", "Neg"), else_branch=branch("e", "Abs")),
    ]
    before = model(
        nodes, {"x": [2, 3], "c": [3], "flag": []}, {"y": [2, 3], "w": [2, 3], "z": [2, 3]}, {"zero": np.float32(0)},
        types={"c": BOOL, "flag": BOOL},
    )
    after, log = run_pass(before, "eliminate-not")
    assert log.applied == 3 and dict(ops(after)) == {"Where": 2, "If": 1}
    for flag in (True, False):
        assert_same(before, after, {"x": SPECIAL, "c": np.asarray([True, False, True]), "flag": np.asarray(flag)}, exact=True)


@pytest.mark.parametrize("other", ["output", "consumer"])
def test_a_negation_that_is_needed_anyway_stays(other) -> None:
    nodes = [node("Not", ["c"], ["n"]), node("Where", ["n", "x", "zero"], ["y"]), node("Cast", ["n"], ["k"], to=1)]
    outputs = {"y": [2, 3], "k": [3]} if other == "consumer" else {"y": [2, 3], "n": [3]}
    nodes = nodes if other == "consumer" else nodes[:2]
    before = model(nodes, {"x": [2, 3], "c": [3]}, outputs, {"zero": np.float32(0)}, types={"c": BOOL, "n": BOOL})
    after, log = run_pass(before, "eliminate-not")
    assert log.applied == 0 and ops(after) == ops(before)
