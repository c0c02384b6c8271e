"""Transposes moved over regions: fewer are left, or nothing is changed."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.passes.layout.transposes import first, last, t
from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "move-transposes"
X = {"x": ["N", 3, 4, 5]}


def check(nodes, transposes, *, initializers=None, inputs=X, outputs=("y",), shape=(2, 3, 4, 5), **options):
    before = model(nodes, inputs, list(outputs), initializers)
    after, log = run_pass(before, NAME, **options)
    assert ops(after)["Transpose"] == transposes, ops(after)
    feeds = {n: array(*shape, seed=i) for i, n in enumerate(inputs)}
    assert_same(before, after, feeds, exact=True)
    assert run_pass(after, NAME, **options)[1].applied == 0  # a fixpoint
    return after, log


def test_across_a_chain() -> None:
    weights = {"k": np.float32(3), "low": np.float32(-1), "one": array(1), "slope": array(3), "bias": array(4, 1, 3)}
    nodes = [
        last("x", "a"),
        node("Relu", ["a"], ["b"]),
        node("Mul", ["k", "b"], ["c"]),
        node("Clip", ["c", "low"], ["d"]),
        node("Sub", ["one", "d"], ["e"]),
        node("PRelu", ["e", "slope"], ["f"]),
        node("Add", ["f", "bias"], ["g"]),
        node("Cast", ["g"], ["h"], to=TensorProto.FLOAT16),
        first("h", "i"),
        node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    after, log = check(nodes, 0, initializers=weights)
    assert log.applied == 1 and {i.name: tuple(i.dims) for i in after.graph.initializer if "turned" in i.name} == {
        "slope/turned": (3, 1, 1), "bias/turned": (3, 4, 1)
    }
    check(nodes, 2, initializers=weights, limit=5)


def test_two_inputs_in_one_layout() -> None:
    inputs = {"x": ["N", 3, 4, 5], "z": ["N", 3, 4, 5]}
    nodes = [last("x", "a"), last("z", "b"), node("Add", ["a", "b"], ["c"]), node("Mul", ["c", "a"], ["d"]), first("d", "y")]
    check(nodes, 0, inputs=inputs)
    check(nodes[:4] + [node("Neg", ["d"], ["y"])], 1, inputs=inputs)


def test_two_inputs_in_different_layouts() -> None:
    inputs = {"x": [2, 4, 4, 4], "z": [2, 4, 4, 4]}
    nodes = [last("x", "a"), t("z", "b", 0, 2, 1, 3), node("Add", ["a", "b"], ["y"])]
    check(nodes, 2, inputs=inputs, shape=(2, 4, 4, 4))
    # One of the three is saved all the same: the other moves to where it meets its inverse.
    check([*nodes[:2], node("Add", ["a", "b"], ["c"]), first("c", "y")], 1, inputs=inputs, shape=(2, 4, 4, 4))


def test_upwards_to_an_inverse() -> None:
    nodes = [
        node("Neg", ["x"], ["n"]), last("n", "a"), node("Relu", ["a"], ["b"]), node("Abs", ["a"], ["c"]), first("b", "d"), first("c", "e"),
        node("Add", ["d", "e"], ["y"]),
    ]
    check(nodes, 0)


def test_other_consumers_need_the_old_layout() -> None:
    nodes = [last("x", "a"), node("Relu", ["a"], ["b"]), first("b", "y"), node("LRN", ["b"], ["z"], size=3)]
    check(nodes, 1, outputs=("y", "z"))
    nodes.append(node("LRN", ["a"], ["w"], size=3))
    _, log = check(nodes, 2, outputs=("y", "z", "w"))
    assert log.applied == 0 and "as many Transposes would be left" in reasons(log)[0]
    nodes = [last("x", "a"), node("Relu", ["a"], ["b"]), first("b", "y"), node("LRN", ["a"], ["z"], size=3)]
    check(nodes, 1, outputs=("y", "z"))
    nodes = [last("x", "a"), node("Relu", ["a"], ["z"]), first("z", "b"), node("Neg", ["b"], ["y"])]
    check(nodes, 1, outputs=("y", "z"))


def test_what_does_not_pay_is_left_as_it_is() -> None:
    nodes = [last("x", "a"), node("Relu", ["a"], ["b"]), node("Neg", ["b"], ["y"])]
    after, log = check(nodes, 1)
    assert [n.op_type for n in after.graph.node] == ["Transpose", "Relu", "Neg"] and not log.applied and not log.refusals
    # The part behind the second Relu would gain nothing, so it stays behind the Transpose.
    nodes = [
        last("x", "a"), node("Relu", ["a"], ["b"]), first("b", "z"), node("Abs", ["b"], ["c"]), node("Ceil", ["c"], ["d"]),
        node("LRN", ["d"], ["y"], size=3),
    ]
    after, _ = check(nodes, 1, outputs=("y", "z"))
    assert [n.op_type for n in after.graph.node] == ["Relu", "Transpose", "Abs", "Ceil", "LRN"]


def test_to_where_less_is_moved() -> None:
    nodes = [last("x", "a"), node("ReduceMax", ["a"], ["y"], axes=[1], keepdims=1)]
    after, _ = check(nodes, 1, inputs={"x": ["N", 3, 40, 50]}, shape=(2, 3, 40, 50))
    assert [n.op_type for n in after.graph.node] == ["ReduceMax", "Transpose"]
    for nodes in (
        [last("x", "a"), node("Concat", ["a", "a"], ["y"], axis=3)],
        [last("x", "a"), node("ReduceMax", ["a"], ["y"], axes=[1], keepdims=1)],  # too small to matter
    ):
        after, log = check(nodes, 1)
        assert log.applied == 0 and [n.op_type for n in after.graph.node] == [n.op_type for n in nodes]


def test_a_transposed_matrix_stays_before_its_product() -> None:
    """Runtimes fuse the two, so that it costs nothing there."""
    sizes = {"x": [2, 2, 1, 64, 32], "q": [2, 2, 4, 16, 32]}
    nodes = [
        node("Expand", ["x", "shape"], ["e"]), t("e", "k", 0, 1, 2, 4, 3), node("MatMul", ["q", "k"], ["y"]),
    ]
    before = model(nodes, sizes, ["y"], {"shape": np.asarray([1, 1, 4, 1, 1])})
    assert run_pass(before, NAME)[1].applied == 0


def test_graph_outputs_keep_their_names_and_layouts() -> None:
    nodes = [
        last("x", "a"), node("Relu", ["a"], ["b"]), node("Abs", ["b"], ["z"]), first("b", "y"), first("z", "w"),
        node("Add", ["y", "w"], ["v"]),
    ]
    check(nodes, 1, outputs=("y", "z", "v"))
    check([last("x", "a"), node("Identity", ["a"], ["b"]), first("b", "y"), first("b", "z")], 0, outputs=("y", "z"))


def test_shape_of_a_moved_value() -> None:
    nodes = [
        last("x", "a"), node("Relu", ["a"], ["b"]), node("Shape", ["b"], ["s"]), first("b", "c"), node("Neg", ["c"], ["y"]),
        node("Cast", ["s"], ["z"], to=TensorProto.FLOAT),
    ]
    after, _ = check(nodes, 0, outputs=("y", "z"))
    assert ops(after)["Gather"] == 1


def test_constants_that_a_caller_may_override() -> None:
    nodes = [last("x", "a"), node("Add", ["a", "b"], ["c"]), first("c", "y")]
    before = model(nodes, X, ["y"], {"b": array(1, 4, 5, 3)}, overridable=["b"])
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Transpose": 1, "Add": 1}
    for feeds in ({}, {"b": array(1, 4, 5, 3, seed=5)}):
        assert_same(before, after, {"x": array(2, 3, 4, 5), **feeds}, exact=True)
    before = model(nodes, X, ["y"], {"b": array(3)}, overridable=["b"])  # of another rank: it would need a Reshape as well
    assert ops(run_pass(before, NAME)[0])["Transpose"] == 2


def test_a_large_constant_is_not_stored_twice() -> None:
    nodes = [last("x", "a"), node("Add", ["a", "b"], ["c"]), first("c", "y"), node("Neg", ["b"], ["z"])]
    shape = (1, 40, 50, 30)
    check(nodes, 2, inputs={"x": [1, 30, 40, 50]}, initializers={"b": array(*shape)}, outputs=("y", "z"), shape=(1, 30, 40, 50))
    check(nodes[:3], 0, inputs={"x": [1, 30, 40, 50]}, initializers={"b": array(*shape)}, shape=(1, 30, 40, 50))


@pytest.mark.parametrize(
    "between",
    [
        node("LRN", ["a"], ["b"], size=3),
        node("Mul", ["a", "wide"], ["b"]),
        node("Exp", ["a"], ["b"]),
        node("Softmax", ["a"], ["b"], axis=-1),
        node("ReduceSum", ["a", "axes"], ["b"]),
        node("Custom", ["a"], ["b"], domain="my"),
    ],
)
def test_operators_that_are_left_alone(between) -> None:
    weights = {"wide": array(1, 1, 4, 5, 3), "axes": np.array([1])}
    nodes = [last("x", "a"), between, *([] if "wide" in between.input else [first("b", "c")])]
    nodes.append(node("Neg", [nodes[-1].output[0]], ["y"]))
    opsets = {"my": 1} if between.domain else None
    before = model(nodes, X, ["y"] if opsets is None else {"y": [None] * 4}, weights, opsets=opsets)
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and log.applied == 0


def test_in_and_around_subgraphs() -> None:
    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)])

    then = branch("then", first("b", "p"), node("Relu", ["p"], ["q"]), node("Neg", ["q"], ["then_y"]))
    other = branch("else", last("x", "r"), node("Abs", ["r"], ["s"]), first("s", "else_y"))
    before = model(
        [last("x", "a"), node("Relu", ["a"], ["b"]), node("If", ["cond"], ["y"], then_branch=then, else_branch=other)],
        {"x": [2, 3, 4, 5], "cond": []},
        {"y": [2, 3, 4, 5]},
        types={"cond": TensorProto.BOOL},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 1 and ops(after)["Transpose"] == 1  # only what lies within one graph
    branches = [a.g for n in after.graph.node for a in n.attribute if a.HasField("g")]
    assert [[n.op_type for n in g.node] for g in branches] == [["Abs"], ["Transpose", "Relu", "Neg"]] or [
        [n.op_type for n in g.node] for g in branches
    ] == [["Transpose", "Relu", "Neg"], ["Abs"]]
    for cond in (True, False):
        assert_same(before, after, {"x": array(2, 3, 4, 5), "cond": np.asarray(cond)}, exact=True)


def test_functions_are_left_alone() -> None:
    body = [last("p", "q"), node("Relu", ["q"], ["r"]), first("r", "s")]
    function = helper.make_function("my", "F", ["p"], ["s"], body, [helper.make_opsetid("", 17)])
    before = model([node("F", ["x"], ["y"], domain="my")], X, {"y": ["N", 3, 4, 5]}, functions=[function], opsets={"my": 1})
    after, log = run_pass(before, NAME)
    assert log.applied == 0 and after.functions == before.functions
