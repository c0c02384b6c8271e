"""Constant nodes as initializers."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass


def constant(name, **value):
    return node("Constant", [], [name], **value)


def test_all_forms_keep_their_names() -> None:
    nodes = [
        constant("a", value=numpy_helper.from_array(array(3))), constant("b", value_float=2.0), constant("c", value_floats=[1.0, 2.0, 3.0]),
        constant("d", value_int=3), constant("e", value_ints=[3]), node("Sum", ["x", "a", "b", "c"], ["s"]), node("Mul", ["d", "e"], ["m"]),
        node("Reshape", ["s", "m"], ["r"]), node("Neg", ["r"], ["y"]),
    ]
    nodes[6] = node("Max", ["d", "e"], ["m"])
    before = model(nodes, {"x": [3]}, ["y"])
    after, log = run_pass(before, "lift-constants")
    assert "Constant" not in ops(after)
    assert {t.name for t in after.graph.initializer} == {"a", "b", "c", "d", "e"}
    assert log.applied == 5
    assert_same(before, after, {"x": array(3)}, exact=True)


def test_strings() -> None:
    before = model(
        [constant("a", value_strings=["p", "q"]), node("Concat", ["a", "a"], ["y"], axis=0)], {"x": [1]}, {"y": [4]},
        types={"y": TensorProto.STRING},
    )
    after, _ = run_pass(before, "lift-constants")
    assert ops(after) == {"Concat": 1}
    assert_same(before, after, {"x": array(1)}, exact=True)


def test_a_graph_output_is_refused() -> None:
    before = model([constant("y", value_floats=[1.0])], {"x": [1]}, {"y": [1]})
    after, log = run_pass(before, "lift-constants")
    assert ops(after) == {"Constant": 1}
    assert reasons(log) == ["it makes a graph output"]


def test_in_subgraphs_under_one_name() -> None:
    branches = [
        helper.make_graph(
            [constant("c", value_float=v), node("Mul", ["x", "c"], [f"t{i}"])], f"b{i}", [],
            [helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, [3])],
        )
        for i, v in enumerate((2.0, 3.0))
    ]
    before = model(
        [node("If", ["k"], ["y"], then_branch=branches[0], else_branch=branches[1])], {"x": [3], "k": []}, {"y": [3]},
        types={"k": TensorProto.BOOL},
    )
    after, log = run_pass(before, "lift-constants")
    assert [[t.name for t in a.g.initializer] for a in after.graph.node[0].attribute] == [["c"], ["c"]]
    assert log.applied == 2
    for k in (True, False):
        assert_same(before, after, {"x": array(3), "k": np.array(k)}, exact=True)


def test_captured_by_a_subgraph() -> None:
    branches = [
        helper.make_graph([node(o, ["x", "c"], [o])], o, [], [helper.make_tensor_value_info(o, TensorProto.FLOAT, [3])])
        for o in ("Add", "Sub")
    ]
    before = model(
        [constant("c", value_float=2.0), node("If", ["k"], ["y"], then_branch=branches[0], else_branch=branches[1])], {"x": [3], "k": []},
        {"y": [3]}, types={"k": TensorProto.BOOL},
    )
    after, _ = run_pass(before, "lift-constants")
    assert ops(after) == {"If": 1}
    assert_same(before, after, {"x": array(3), "k": np.array(False)}, exact=True)


def test_functions_references_and_sparse_values_stay() -> None:
    parameter = helper.make_node("Constant", [], ["p"])
    parameter.attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name="scale", type=onnx.AttributeProto.FLOAT))
    function = helper.make_function(
        "local", "scaled", ["x"], ["y"],
        [parameter, helper.make_node("Constant", [], ["c"], value_float=2.0), helper.make_node("Sum", ["x", "p", "c"], ["y"])],
        [helper.make_opsetid("", 17)], ["scale"],
    )
    before = model(
        [node("scaled", ["x"], ["y"], domain="local", scale=3.0)], {"x": [3]}, {"y": [3]}, functions=[function], opsets={"local": 1}
    )
    after, log = run_pass(before, "lift-constants")
    assert [n.op_type for n in after.functions[0].node] == ["Constant", "Constant", "Sum"]
    assert log.applied == 0


def test_metadata_comes_along() -> None:
    before = model([constant("c", value_float=2.0), node("Mul", ["x", "c"], ["y"])], {"x": [3]}, ["y"])
    before.graph.node[0].doc_string = "gain"
    before.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, []))
    after, _ = run_pass(before, "lift-constants")
    assert numpy_helper.to_array(after.graph.initializer[0]) == 2
