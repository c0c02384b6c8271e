"""Equal computations done once; what only looks equal is done twice."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "eliminate-common-subexpressions"


def test_chains_of_equals_collapse() -> None:
    before = model(
        [
            node("Relu", ["x"], ["a"]),
            node("Relu", ["x"], ["b"]),
            node("Neg", ["a"], ["c"]),
            node("Neg", ["b"], ["d"]),
            node("Add", ["c", "d"], ["y"]),
        ],
        {"x": [3]},
        ["y"],
    )
    after, log = run_pass(before, NAME)
    assert ops(after) == {"Relu": 1, "Neg": 1, "Add": 1} and log.applied == 2
    assert_same(before, after, {"x": array(3)}, exact=True)


def test_attributes_tell_nodes_apart() -> None:
    nodes = [
        node("LeakyRelu", ["x"], ["a"], alpha=0.1),
        node("LeakyRelu", ["x"], ["b"], alpha=0.1),
        node("LeakyRelu", ["x"], ["c"], alpha=0.2),
        node("LeakyRelu", ["x"], ["d"], alpha=0.0),
        node("LeakyRelu", ["x"], ["e"], alpha=-0.0),
        node("Transpose", ["x"], ["f"], perm=[0, 1]),
        node("Transpose", ["x"], ["g"], perm=[1, 0]),
        node("Sum", ["a", "b", "c", "d", "e", "f", "g"], ["y"]),
    ]
    before = model(nodes, {"x": [3, 3]}, ["y"])
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"LeakyRelu": 4, "Transpose": 2, "Sum": 1}
    assert_same(before, after, {"x": array(3, 3)}, exact=True)


def test_constants_by_their_bytes_up_to_a_size() -> None:
    def constant(name: str, data: np.ndarray) -> onnx.NodeProto:
        return node("Constant", [], [name], value=onnx.numpy_helper.from_array(data))

    zeros = np.zeros(3, np.float32)
    nodes = [
        constant("a", zeros),
        constant("b", zeros),
        constant("c", -zeros),
        constant("d", array(400)),
        constant("e", array(400)),
        node("ReduceSum", ["d"], ["d1"]),
        node("ReduceSum", ["e"], ["e1"]),
        node("Sum", ["a", "b", "c", "d1", "e1", "x"], ["y"]),
    ]
    before = model(nodes, {"x": [3]}, ["y"])
    after, _ = run_pass(before, NAME)
    assert ops(after)["Constant"] == 4
    assert ops(run_pass(before, NAME, constant_bytes=1600)[0])["Constant"] == 3
    assert_same(before, after, {"x": array(3)}, exact=True)


def test_omitted_inputs_and_outputs_tell_nodes_apart() -> None:
    nodes = [
        node("MaxPool", ["x"], ["a", "i"], kernel_shape=[2, 2]),
        node("MaxPool", ["x"], ["b"], kernel_shape=[2, 2]),
        node("Clip", ["a", "k"], ["c"]),
        node("Clip", ["a", "", "k"], ["d"]),
        node("LSTM", ["s", "w", "r"], ["", "h"], hidden_size=4, name="l1"),
        node("LSTM", ["s", "w", "r"], ["seq", ""], hidden_size=4, name="l2"),
        node("Sum", ["b", "c", "d"], ["y"]),
    ]
    before = model(
        nodes,
        {"x": [1, 1, 4, 4], "s": [3, 2, 5]},
        ["y", "i", "h", "seq"],
        {"k": np.float32(0), "w": array(1, 16, 5), "r": array(1, 16, 4)},
        types={"i": TensorProto.INT64},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 0
    assert_same(before, after, {"x": array(1, 1, 4, 4), "s": array(3, 2, 5)}, exact=True)


def test_random_operators_are_never_one() -> None:
    function = helper.make_function(
        "local",
        "Noise",
        ["a"],
        ["b"],
        [node("Noisy", ["a"], ["b"], domain="local")],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )
    noisy = helper.make_function("local", "Noisy", ["a"], ["b"], [node("RandomNormalLike", ["a"], ["b"])], [helper.make_opsetid("", 17)])
    calm = helper.make_function("local", "Calm", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)])
    weights = {"ratio": np.float32(0.5), "train": np.asarray(True), "off": np.asarray(False)}
    nodes = [
        node("RandomNormal", [], ["r1"], shape=[3], seed=1.0),
        node("RandomNormal", [], ["r2"], shape=[3], seed=1.0),
        node("RandomUniformLike", ["x"], ["u1"]),
        node("RandomUniformLike", ["x"], ["u2"]),
        node("Bernoulli", ["x"], ["b1"]),
        node("Bernoulli", ["x"], ["b2"]),
        node("Dropout", ["x", "ratio", "train"], ["d1"]),
        node("Dropout", ["x", "ratio", "train"], ["d2"]),
        node("Dropout", ["x", "ratio", "off"], ["e1"]),
        node("Dropout", ["x", "ratio", "off"], ["e2"]),
        node("Noise", ["x"], ["n1"], domain="local"),
        node("Noise", ["x"], ["n2"], domain="local"),
        node("Calm", ["x"], ["c1"], domain="local"),
        node("Calm", ["x"], ["c2"], domain="local"),
        node("Sum", ["r1", "r2", "u1", "u2", "b1", "b2", "d1", "d2", "e1", "e2", "n1", "n2", "c1", "c2"], ["y"]),
    ]
    before = model(nodes, {"x": [3]}, {"y": [3]}, weights, functions=[function, noisy, calm], opsets={"local": 1})
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"RandomNormal": 2, "RandomUniformLike": 2, "Bernoulli": 2, "Dropout": 3, "Noise": 2, "Calm": 1, "Sum": 1}


def test_unknown_operators_are_never_one() -> None:
    before = model(
        [node("F", ["x"], ["a"], domain="custom"), node("F", ["x"], ["b"], domain="custom"), node("Add", ["a", "b"], ["y"])],
        {"x": [3]},
        {"y": [3]},
        opsets={"custom": 1},
    )
    after, log = run_pass(before, NAME)
    assert ops(after)["F"] == 2 and not log.refusals


def test_names_of_graph_outputs() -> None:
    before = model([node("Relu", ["x"], ["a"]), node("Relu", ["x"], ["y"]), node("Neg", ["a"], ["z"])], {"x": [3]}, ["y", "z"])
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Relu": 1, "Neg": 1}
    assert_same(before, after, {"x": array(3)}, exact=True)
    before = model(
        [node("Relu", ["x"], ["y"]), node("Relu", ["x"], ["z"]), node("Relu", ["x"], ["c"]), node("Neg", ["c"], ["n"])],
        {"x": [3]},
        ["y", "z", "n"],
    )
    after, log = run_pass(before, NAME)
    assert ops(after) == {"Relu": 2, "Neg": 1}
    assert "both name a graph output" in reasons(log)[0]
    assert_same(before, after, {"x": array(3)}, exact=True)


def branch(name: str, nodes) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(f"{name}_y", 1, [3])])


def subgraph(proto: onnx.ModelProto, name: str) -> list[str]:
    owner = next(n for n in proto.graph.node if n.op_type == "If")
    return [n.op_type for n in next(a.g for a in owner.attribute if a.name == name).node]


@pytest.mark.parametrize("first", [True, False])
def test_subgraphs_reuse_what_was_computed_before_them(first: bool) -> None:
    condition = node(
        "If",
        ["cond"],
        ["z"],
        then_branch=branch("then", [node("Exp", ["x"], ["e1"]), node("Neg", ["e1"], ["then_y"])]),
        else_branch=branch("else", [node("Exp", ["x"], ["e2"]), node("Abs", ["e2"], ["else_y"])]),
    )
    outer = node("Exp", ["x"], ["e"])
    nodes = [outer, condition] if first else [condition, outer]
    before = model([*nodes, node("Add", ["e", "z"], ["y"])], {"x": [3], "cond": []}, {"y": [3]}, types={"cond": TensorProto.BOOL})
    after, _ = run_pass(before, NAME)
    # What stands behind the If, or in its other branch, was not computed when the branch runs.
    assert subgraph(after, "then_branch") == (["Neg"] if first else ["Exp", "Neg"])
    assert subgraph(after, "else_branch") == (["Abs"] if first else ["Exp", "Abs"])
    for cond in (True, False):
        assert_same(before, after, {"x": array(3), "cond": np.asarray(cond)}, exact=True)


def test_an_output_of_a_subgraph_stays_in_it() -> None:
    before = model(
        [
            node("Exp", ["x"], ["e"]),
            node(
                "If",
                ["cond"],
                ["z"],
                then_branch=branch("then", [node("Exp", ["x"], ["then_y"])]),
                else_branch=branch("else", [node("Neg", ["x"], ["else_y"])]),
            ),
            node("Add", ["e", "z"], ["y"]),
        ],
        {"x": [3], "cond": []},
        {"y": [3]},
        types={"cond": TensorProto.BOOL},
    )
    after, log = run_pass(before, NAME)
    assert subgraph(after, "then_branch") == ["Exp"] and "output of a subgraph" in reasons(log)[0]
    assert_same(before, after, {"x": array(3), "cond": np.asarray(True)}, exact=True)


def test_nodes_with_subgraphs_are_left_alone() -> None:
    def condition(name: str) -> onnx.NodeProto:
        return node(
            "If",
            ["cond"],
            [name],
            then_branch=branch(f"t{name}", [node("Exp", ["x"], [f"t{name}_y"])]),
            else_branch=branch(f"e{name}", [node("Neg", ["x"], [f"e{name}_y"])]),
        )

    before = model(
        [condition("a"), condition("b"), node("Add", ["a", "b"], ["y"])],
        {"x": [3], "cond": []},
        {"y": [3]},
        types={"cond": TensorProto.BOOL},
    )
    after, _ = run_pass(before, NAME)
    assert ops(after)["If"] == 2


def test_in_functions_and_their_parameters() -> None:
    function = onnx.FunctionProto.FromString(
        helper.make_function(
            "local",
            "F",
            ["a"],
            ["b"],
            [
                node("LeakyRelu", ["a"], ["p"]),
                node("LeakyRelu", ["a"], ["q"]),
                node("LeakyRelu", ["a"], ["r"]),
                node("Sum", ["p", "q", "r"], ["b"]),
            ],
            [helper.make_opsetid("", 17)],
            attributes=["slope"],
        ).SerializeToString()
    )
    for n in function.node[:2]:
        n.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    before = model([node("F", ["x"], ["y"], domain="local", slope=0.5)], {"x": [3]}, {"y": [3]}, functions=[function], opsets={"local": 1})
    after, _ = run_pass(before, NAME)
    assert [n.op_type for n in after.functions[0].node] == ["LeakyRelu", "LeakyRelu", "Sum"]
    assert_same(before, after, {"x": array(3)}, exact=True)
