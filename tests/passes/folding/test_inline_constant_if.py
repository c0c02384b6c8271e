"""If with a known condition: the branch that is taken stands in its place, names and captures included."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import array, assert_same, model, node, ops, run_pass

X = {"x": array(2, 3)}


def branch(name, nodes, outputs, initializers=None):
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(v, TensorProto.FLOAT, [2, 3]) for v in outputs],
        [numpy_helper.from_array(a, n) for n, a in (initializers or {}).items()],
    )


def choice(condition, outputs, then_branch, else_branch):
    return node("If", [condition], outputs, then_branch=then_branch, else_branch=else_branch)


RELU, EXP = branch("a", [node("Relu", ["x"], ["t"])], ["t"]), branch("b", [node("Exp", ["x"], ["u"])], ["u"])


def inlined(before, feeds=X):
    after, log = run_pass(before, "inline-constant-if")
    assert_same(before, after, feeds, exact=True)
    return after, log


@pytest.mark.parametrize("taken", [True, False])
def test_the_branch_taken(taken) -> None:
    before = model(
        [
            node("Relu", ["x"], ["r"]),
            choice(
                "k", ["a"], branch("then", [node("Mul", ["r", "w"], ["t"]), node("Neg", ["t"], ["u"])], ["u"], {"w": array(3)}),
                branch("else", [node("Exp", ["r"], ["t"])], ["t"]),
            ),
            node("Abs", ["a"], ["y"]),
        ],
        {"x": [2, 3]}, {"y": [2, 3]}, {"k": np.array(taken)},
    )
    after, log = inlined(before)
    assert ops(after) == ({"Relu": 1, "Mul": 1, "Neg": 1, "Abs": 1} if taken else {"Relu": 1, "Exp": 1, "Abs": 1})
    assert log.applied == 1


def test_names_do_not_clash() -> None:
    nodes, ends = [], []
    for i in range(2):
        inner = branch(f"then{i}", [node("Mul", ["x", "w"], ["t"]), node("Neg", ["t"], ["u"])], ["u"], {"w": array(3, seed=i)})
        nodes.append(node("If", ["k"], [f"a{i}"], then_branch=inner, else_branch=branch(f"else{i}", [node("Exp", ["x"], ["t"])], ["t"])))
        ends.append(f"a{i}")
    before = model([*nodes, node("Add", ends, ["y"])], {"x": [2, 3]}, {"y": [2, 3]}, {"k": np.array(True)})
    after, _ = inlined(before)
    assert ops(after) == {"Mul": 2, "Neg": 2, "Add": 1}


def test_graph_outputs_keep_their_names() -> None:
    both = branch("then", [node("Relu", ["x"], ["t"]), node("Identity", ["x"], ["c"])], ["t", "c"])
    other = branch("else", [node("Exp", ["x"], ["t"]), node("Exp", ["x"], ["c"])], ["t", "c"])
    outputs = {"y": [2, 3], "z": [2, 3]}
    before = model([choice("k", list(outputs), both, other)], {"x": [2, 3]}, outputs, {"k": np.array(True)})
    after, _ = inlined(before)
    assert ops(after) == {"Relu": 1, "Identity": 1}


def test_an_initializer_as_the_branch_output() -> None:
    constant = branch("then", [], ["w"], {"w": array(2, 3, seed=4)})
    other = branch("else", [node("Exp", ["x"], ["t"])], ["t"])
    for outputs in (["y"], ["a"]):
        end = [] if outputs == ["y"] else [node("Add", ["a", "x"], ["y"])]
        before = model([choice("k", outputs, constant, other), *end], {"x": [2, 3]}, {"y": [2, 3]}, {"k": np.array(True)})
        after, log = inlined(before)
        assert "If" not in ops(after)
        assert log.applied == 1


def test_nested_and_in_a_loop() -> None:
    inner = choice("k", ["i"], branch("a", [node("Relu", ["s"], ["p"])], ["p"]), branch("b", [node("Exp", ["s"], ["q"])], ["q"]))
    outer = node(
        "If", ["k"], ["o"], then_branch=branch("c", [inner], ["i"]), else_branch=branch("d", [node("Neg", ["s"], ["m"])], ["m"]),
    )
    body = helper.make_graph(
        [outer, node("Identity", ["going"], ["still"])], "body",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []), helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    before = model(
        [node("Loop", ["trips", "yes", "x"], ["y"], body=body)], {"x": [2, 3]}, {"y": [2, 3]},
        {"k": np.array(True), "yes": np.array(True), "trips": np.array(3)},
    )
    after, log = inlined(before)
    assert [n.op_type for n in after.graph.node[0].attribute[0].g.node] == ["Relu", "Identity"]
    assert log.applied == 2


def test_a_condition_that_shapes_settle() -> None:
    before = model(
        [
            node("Shape", ["x"], ["s"]), node("Gather", ["s", "i"], ["g"]), node("Equal", ["g", "three"], ["k"]),
            choice("k", ["y"], RELU, EXP),
        ],
        {"x": ["n", 3]}, {"y": ["n", 3]}, {"i": np.array(1), "three": np.array(3)},
    )
    after, _ = inlined(before)
    assert ops(after) == {"Relu": 1}


def test_an_unknown_or_overridable_condition_stays() -> None:
    one = choice("k", ["y"], RELU, EXP)
    for before in (
        model([one], {"x": [2, 3], "k": []}, {"y": [2, 3]}, types={"k": TensorProto.BOOL}),
        model([one], {"x": [2, 3]}, {"y": [2, 3]}, {"k": np.array(True)}, overridable=["k"]),
    ):
        after, log = run_pass(before, "inline-constant-if")
        assert ops(after) == {"If": 1}
        assert log.applied == 0


def test_in_a_function_initializers_become_constants() -> None:
    condition = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array(True)))
    taken = branch("a", [node("Mul", ["x", "w"], ["t"])], ["t"], {"w": array(3)})
    nodes = [condition, choice("k", ["y"], taken, EXP)]
    function = helper.make_function("local", "choose", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)])
    call = node("choose", ["x"], ["y"], domain="local")
    before = model([call], {"x": [2, 3]}, {"y": [2, 3]}, functions=[function], opsets={"local": 1})
    after, _ = inlined(before)
    assert [n.op_type for n in after.functions[0].node] == ["Constant", "Mul"]
