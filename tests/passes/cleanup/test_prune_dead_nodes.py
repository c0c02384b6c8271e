"""Dead code: what nothing uses goes, what something may use stays."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt.rewriting import ChangeLog, Context
from tests.support import REGISTRY, array, assert_same, model, node, ops, run_pass, session

NAME = "prune-dead-nodes"


def branch(name: str, nodes, initializers=()) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes),
        name,
        [],
        [helper.make_tensor_value_info(f"{name}_y", 1, [3])],
        [onnx.numpy_helper.from_array(a, n) for n, a in dict(initializers).items()],
    )


def test_nodes_without_consumers_and_what_only_they_used() -> None:
    before = model(
        [node("Relu", ["x"], ["y"]), node("Add", ["x", "k"], ["a"]), node("Neg", ["a"], ["b"]), node("RandomNormalLike", ["b"], ["r"])],
        {"x": [3], "unused": [2]},
        ["y"],
        {"k": array(3), "lonely": array(5)},
    )
    after, log = run_pass(before, NAME)
    assert ops(after) == {"Relu": 1}
    assert [i.name for i in after.graph.input] == ["x", "unused"]
    assert not after.graph.initializer
    assert log.applied == 2  # the chain of nodes, and the lonely initializer
    assert_same(before, after, {"x": array(3), "unused": array(2)}, exact=True)


def test_captured_values_stay_and_subgraphs_are_cleaned() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Abs", ["x"], ["only_in_dead"]),
        node(
            "If",
            ["cond"],
            ["y"],
            then_branch=branch(
                "then", [node("Neg", ["only_in_dead"], ["dead"]), node("Add", ["r", "k"], ["then_y"])], {"k": array(3), "u": array(4)}
            ),
            else_branch=branch("else", [node("Neg", ["r"], ["else_y"])]),
        ),
    ]
    before = model(nodes, {"x": [3], "cond": []}, {"y": [3]}, types={"cond": TensorProto.BOOL})
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Relu": 1, "If": 1}
    then = next(a.g for a in after.graph.node[-1].attribute if a.name == "then_branch")
    assert [n.op_type for n in then.node] == ["Add"] and [i.name for i in then.initializer] == ["k"]
    for cond in (True, False):
        assert_same(before, after, {"x": array(3), "cond": np.asarray(cond)}, exact=True)


def test_a_dead_if_goes_with_what_it_captured() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Neg", ["x"], ["y"]),
        node(
            "If",
            ["cond"],
            ["z"],
            then_branch=branch("then", [node("Neg", ["r"], ["then_y"]), node("Abs", ["r"], ["dead"])]),
            else_branch=branch("else", [node("Abs", ["r"], ["else_y"])]),
        ),
    ]
    before = model(nodes, {"x": [3], "cond": []}, {"y": [3]}, types={"cond": TensorProto.BOOL})
    after, log = run_pass(before, NAME)
    assert ops(after) == {"Neg": 1}
    assert log.applied == 1


def test_overridable_initializers_stay() -> None:
    before = model([node("Relu", ["x"], ["y"])], {"x": [3]}, ["y"], {"k": array(3)}, overridable=["k"])
    after, log = run_pass(before, NAME)
    assert [i.name for i in after.graph.initializer] == ["k"] and log.applied == 0


def function(name: str, nodes) -> onnx.FunctionProto:
    return helper.make_function("local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)])


def test_functions_that_nothing_calls() -> None:
    functions = [
        function("Used", [node("Inner", ["a"], ["b"], domain="local"), node("Neg", ["a"], ["dead"])]),
        function("Inner", [node("Relu", ["a"], ["b"])]),
        function("Lost", [node("Deeper", ["a"], ["b"], domain="local")]),
        function("Deeper", [node("Abs", ["a"], ["b"])]),
    ]
    before = model([node("Used", ["x"], ["y"], domain="local")], {"x": [3]}, {"y": [3]}, functions=functions, opsets={"local": 1})
    after, log = run_pass(before, NAME)
    assert [f.name for f in after.functions] == ["Used", "Inner"]
    assert [n.op_type for n in after.functions[0].node] == ["Inner"]
    assert any("function local:Lost" in label for _, label in log.numbered)
    assert_same(before, after, {"x": array(3)}, exact=True)


def test_optional_outputs_are_left_out() -> None:
    weights = {"w": array(1, 16, 5), "r": array(1, 16, 4)}
    nodes = [
        node("MaxPool", ["image"], ["p", "indices"], kernel_shape=[2, 2]),
        node("LSTM", ["x", "w", "r"], ["seq", "h", "c"], hidden_size=4),
        node("TopK", ["p", "k"], ["values", "positions"]),
    ]
    before = model(nodes, {"image": [1, 1, 4, 4], "x": [3, 2, 5]}, ["values", "h"], {**weights, "k": np.asarray([1])})
    after, _ = run_pass(before, NAME)
    assert [list(n.output) for n in after.graph.node] == [["p"], ["", "h"], ["values", "positions"]]
    assert_same(before, after, {"image": array(1, 1, 4, 4), "x": array(3, 2, 5)}, exact=True)


def test_outputs_that_decide_whether_a_normalization_trains_stay() -> None:
    bn = {n: array(4, low=0.5) for n in "sbmv"}
    for opset, attributes, outputs in ((9, {}, ["y", "o1", "o2", "o3", "o4"]), (15, {"training_mode": 1}, ["y", "o1", "o2"])):
        proto = helper.make_model(
            helper.make_graph(
                [helper.make_node("BatchNormalization", ["x", *"sbmv"], outputs, **attributes)],
                "g",
                [helper.make_tensor_value_info("x", 1, [2, 4, 3])],
                [helper.make_tensor_value_info("y", 1, [2, 4, 3])],
                [onnx.numpy_helper.from_array(a, n) for n, a in bn.items()],
            ),
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=8,
        )
        graph = ir.from_proto(proto)
        log = ChangeLog(NAME)
        REGISTRY.get(NAME)().run(Context(graph, log))
        assert log.applied == 0 and len(graph.graph[0].outputs) == len(outputs)


@pytest.mark.parametrize("on", [False, True])
def test_opset_imports_stay_unless_asked(on: bool) -> None:
    before = model([node("Relu", ["x"], ["y"])], {"x": [3]}, ["y"], opsets={"ai.onnx.ml": 3})
    after, _ = run_pass(before, NAME, opset_imports=on)
    assert len(after.opset_import) == (1 if on else 2)


def test_outputs_without_names_and_nodes_without_outputs() -> None:
    before = model([node("Dropout", ["x"], ["y", "mask"])], {"x": [3]}, ["y"], opset=13)
    after, _ = run_pass(before, NAME)
    assert list(after.graph.node[0].output) == ["y"]
    assert session(after).run(None, {"x": array(3)})[0].shape == (3,)
