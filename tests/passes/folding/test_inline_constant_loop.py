"""Loops that run not at all or once: their body, or what they start with, stands in their place."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

PASS = "inline-constant-loop"
X = {"x": array(2, 3)}


def info(name, dims, kind=1):
    return helper.make_tensor_value_info(name, kind, dims)


def body(nodes, outputs, initializers=None):
    """A body that carries `c` of [2, 3]; `outputs`: name to shape, the condition first."""
    kinds = {name: TensorProto.BOOL if i == 0 else TensorProto.FLOAT for i, name in enumerate(outputs)}
    inputs = [info("i", [], TensorProto.INT64), info("going", [], TensorProto.BOOL), info("c", [2, 3])]
    made = [numpy_helper.from_array(a, n) for n, a in (initializers or {}).items()]
    return helper.make_graph(nodes, "body", inputs, [info(n, s, kinds[n]) for n, s in outputs.items()], made)


STEP = [
    node("Cast", ["i"], ["f"], to=1), node("Add", ["c", "f"], ["d"]), node("Mul", ["d", "r"], ["e"]), node("Tanh", ["e"], ["t"]),
    node("Identity", ["going"], ["still"]),
]


def loop(count, condition, graph, outputs, constants=None, opset=17, extra=(), inputs=None):
    given = ["m" if count is not None else "", "k" if condition is not None else "", "r"]
    constants = {name: np.asarray(v) for name, v in (("m", count), ("k", condition)) if v is not None}
    nodes = [node("Relu", ["x"], ["r"]), helper.make_node("Loop", given, list(outputs), name="loop", body=graph), *extra]
    return model(nodes, {"x": [2, 3], **(inputs or {})}, outputs, constants, opset=opset)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("condition", [True, None])
def test_once(condition, opset) -> None:
    before = loop(1, condition, body(STEP, {"still": [], "e": [2, 3], "t": [2, 3]}), {"y": [2, 3], "z": [1, 2, 3]}, opset=opset)
    after, log = run_pass(before, PASS)
    assert log.applied == 1 and "Loop" not in ops(after) and ops(after)["Unsqueeze"] == 1
    assert_same(before, after, X, exact=True)


def test_once_because_the_body_says_so() -> None:
    graph = body(STEP[:3], {"no": [], "e": [2, 3]}, {"no": np.asarray(False)})
    for count in (7, None):
        before = loop(count, True, graph, {"y": [2, 3]})
        after, log = run_pass(before, PASS)
        assert log.applied == 1 and "Loop" not in ops(after)
        assert_same(before, after, X, exact=True)


def test_what_the_body_hands_on_unchanged() -> None:
    nodes = [node("Identity", ["going"], ["still"]), node("Identity", ["c"], ["d"])]
    graph = body(nodes, {"still": [], "d": [2, 3], "w": [3]}, {"w": array(3)})
    before = loop(1, None, graph, {"y": [2, 3], "z": [1, 3]})
    after, log = run_pass(before, PASS)
    assert log.applied == 1 and "Loop" not in ops(after)
    assert_same(before, after, X, exact=True)


@pytest.mark.parametrize(("count", "condition"), [(0, True), (0, None), (5, False), (None, False)])
def test_never(count, condition) -> None:
    before = loop(count, condition, body(STEP, {"still": [], "e": [2, 3], "f": []}), {"y": [2, 3], "z": [0]})
    after, log = run_pass(before, PASS)
    assert log.applied == 1 and set(ops(after)) == {"Relu", "Identity"}
    assert_same(before, after, X, exact=True)


def test_never_where_the_shape_is_not_known() -> None:
    before = loop(0, True, body(STEP, {"still": [], "e": [2, 3], "t": [2, 3]}), {"y": [2, 3], "z": [0, 2, 3]})
    after, log = run_pass(before, PASS)
    assert ops(after) == ops(before) and reasons(log) == ["it never runs, but the shape of what it would collect is not known"]


def test_more_rounds_or_an_open_end_stay() -> None:
    graph = body(STEP, {"still": [], "e": [2, 3], "t": [2, 3]})
    for count, condition in ((2, True), (3, None)):
        before = loop(count, condition, graph, {"y": [2, 3], "z": [count, 2, 3]})
        after, log = run_pass(before, PASS)
        assert log.applied == 0 and ops(after) == ops(before)


def test_in_a_branch() -> None:
    outer = loop(1, True, body(STEP, {"still": [], "e": [2, 3]}), {"y": [2, 3]})
    inner = helper.make_graph(list(outer.graph.node), "then", [], [info("y", [2, 3])], list(outer.graph.initializer))
    other = helper.make_graph([node("Neg", ["x"], ["n"])], "else", [], [info("n", [2, 3])])
    chosen = node("If", ["flag"], ["out"], then_branch=inner, else_branch=other)
    before = model([chosen], {"x": [2, 3], "flag": []}, {"out": [2, 3]}, types={"flag": 9})
    after, log = run_pass(before, PASS)
    assert log.applied == 1
    for flag in (True, False):
        assert_same(before, after, {**X, "flag": np.asarray(flag)}, exact=True)


def test_a_loop_in_the_body_of_one_that_never_runs() -> None:
    inner = helper.make_graph(
        [node("Identity", ["on"], ["still_on"]), node("Neg", ["g"], ["h"])], "inner",
        [info("j", [], TensorProto.INT64), info("on", [], TensorProto.BOOL), info("g", [2, 3])],
        [info("still_on", [], TensorProto.BOOL), info("h", [2, 3])],
    )
    nested = helper.make_node("Loop", ["m", "", "c"], ["d"], name="nested", body=inner)
    graph = body([node("Identity", ["going"], ["still"]), nested], {"still": [], "d": [2, 3]})
    before = loop(0, None, graph, {"y": [2, 3]})
    after, log = run_pass(before, PASS)
    assert "Loop" not in ops(after), reasons(log)
    assert_same(before, after, X, exact=True)
