"""A selection goes before the products that compute what is thrown away, and only where nothing else needs it."""

import numpy as np
import pytest
from onnx import TensorProto

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "hoist-selections"
X = ("n", 6, 8)
WEIGHTS = {
    "w": array(8, 8), "v": array(8, 8, seed=1), "b": array(8, seed=2), "s": array(8, low=0.5), "zero": np.array(0), "one": np.array([1]),
    "two": np.array([2]), "first": np.array([0]), "last": np.array([-1]), "end": np.array([2**63 - 1]), "some": np.array([4, 1]),
    "most": np.array([0, 1, 2, 3]), "heads": np.array([0, 6, 2, 4]), "joined": np.array([0, 6, 8]), "scale": np.float32(0.5),
    "places": array(6, 8, seed=5), "flat": np.array([-1, 8]), "axis": np.array([-1]), "axis1": np.array([1]), "eps": np.float32(1e-5),
    "one0": np.array(1), "mix": array(6, 6),
}  # fmt: skip


def made(nodes, outputs=("y",), x=X, opset=18, **kwargs):
    used = {i for n in nodes for i in n.input}
    return model(nodes, {"x": x}, outputs, {k: v for k, v in WEIGHTS.items() if k in used}, opset=opset, **kwargs)


def product(source="x", output="p"):
    return [node("MatMul", [source, "w"], [f"{output}m"]), node("Add", [f"{output}m", "b"], [output])]


def select(source, how="scalar", output="y", axis=1):
    if how == "scalar":
        return [node("Gather", [source, "zero"], [output], axis=axis)]
    if how == "negative":
        return [node("Gather", [source, "last"], [output], axis=axis - 3)]
    if how == "several":
        return [node("Gather", [source, "some"], [output], axis=axis)]
    start, end = {"slice": ("first", "one"), "last slice": ("last", "end"), "two": ("first", "two")}[how]
    return [node("Slice", [source, start, end, "axis1"], [output])]


def check(before, gone=0, **feeds):
    """The rewrite applies, agrees, leaves nothing to a second run, and the first product has fewer rows."""
    after, log = run_pass(before, NAME)
    assert log.applied == 1, reasons(log)
    assert_same(before, after, feeds or {"x": array(2, 6, 8)})
    again, log = run_pass(after, NAME)
    assert log.applied == 0 and ops(again) == ops(after)
    return after


@pytest.mark.parametrize("how", ["scalar", "negative", "several", "slice", "last slice", "two"])
@pytest.mark.parametrize("x", [X, (2, 6, 8)])
def test_before_a_product(how, x) -> None:
    after = check(made([*product(), *select("p", how)], x=x))
    assert after.graph.node[0].op_type in ("Gather", "Slice") and after.graph.node[0].input[0] == "x"
    assert ops(after)["MatMul"] == 1 and ops(after)["Squeeze"] == (how == "scalar")


@pytest.mark.parametrize("how", ["scalar", "slice", "last slice"])
def test_one_place_of_an_axis_of_unknown_size(how) -> None:
    check(made([*product(), *select("p", how)], x=("n", "s", 8)))
    unmatched(made([*product(), *select("p", "two")], x=("n", "s", 8)))


def block(norm="LayerNormalization"):
    """A transformer block that normalizes first, with its two residuals."""
    normed = lambda x, y: [node(norm, [x, "s", "b"], [y], axis=-1)]  # noqa: E731
    heads = lambda x, perm: [node("Reshape", [x, "heads"], [x + "h"]), node("Transpose", [x + "h"], [x + "t"], perm=perm)]  # noqa: E731
    return [
        *normed("x", "n1"), *product("n1", "q"), *product("n1", "k"), *product("n1", "u"), *heads("q", [0, 2, 1, 3]),
        *heads("k", [0, 2, 3, 1]), *heads("u", [0, 2, 1, 3]), node("MatMul", ["qt", "kt"], ["qk"]), node("Mul", ["qk", "scale"], ["sc"]),
        node("Softmax", ["sc"], ["sm"], axis=-1), node("MatMul", ["sm", "ut"], ["pv"]),
        node("Transpose", ["pv"], ["pt"], perm=[0, 2, 1, 3]),
        node("Reshape", ["pt", "joined"], ["pr"]), *product("pr", "o"), node("Add", ["x", "o"], ["r1"]), *normed("r1", "n2"),
        node("MatMul", ["n2", "v"], ["f"]), node("Relu", ["f"], ["g"]), *product("g", "h"), node("Add", ["h", "r1"], ["r2"]),
    ]  # fmt: skip


def test_through_a_transformer_block() -> None:
    before = made([*block(), *select("r2")])
    after = check(before)
    rows = {n.output[0]: n.input[0] for n in after.graph.node}
    assert ops(after)["Gather"] == 2  # of the residual, and of the queries
    assert {n.input[0] for n in after.graph.node if n.op_type == "Gather"} == {"x", "n1"}, rows


def test_through_a_normalization_that_is_spelled_out() -> None:
    nodes = [
        *product(), node("ReduceMean", ["p", "axis"], ["m"]), node("Sub", ["p", "m"], ["d"]), node("Mul", ["d", "d"], ["q"]),
        node("ReduceMean", ["q", "axis"], ["v2"]), node("Add", ["v2", "eps"], ["e"]), node("Sqrt", ["e"], ["t"]),
        node("Div", ["d", "t"], ["z"]),
    ]  # fmt: skip
    after = check(made([*nodes, *select("z")]))
    assert after.graph.node[0].input[0] == "x" and ops(after)["Gather"] == 1


def test_a_constant_with_places_is_selected_from_too() -> None:
    after = check(made([*product(), node("Add", ["p", "places"], ["a"]), *select("a", "several")]))
    assert {n.input[0]: n.attribute[0].i for n in after.graph.node if n.op_type == "Gather"} == {"x": 1, "places": 0}


def test_through_a_gemm() -> None:
    nodes = [node("Gemm", ["x", "w", "places"], ["p"]), *select("p", "several", axis=0)]
    check(made(nodes, x=(6, 8)), x=array(6, 8))
    check(made([node("Gemm", ["x", "w", "b"], ["p"], transA=1), *select("p", "scalar", axis=0)], x=(8, 6)), x=array(8, 6))


def test_through_concat_and_a_transpose() -> None:
    nodes = [*product(), node("Concat", ["p", "x"], ["c"], axis=2), node("Transpose", ["c"], ["t"], perm=[1, 2, 0]), *select("t", axis=0)]
    check(made(nodes))


def test_before_opset_13() -> None:
    check(made([*product(), *select("p")], opset=11))


def unmatched(before) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and not reasons(log), reasons(log)


@pytest.mark.parametrize("more, outputs, reason", [
    ([node("Relu", ["p"], ["z"])], ("y", "z"), "has 2 consumers"),
    ([], ("y", "p"), "graph output"),
])  # fmt: skip
def test_what_is_needed_whole(more, outputs, reason) -> None:
    before = made([*product(), *select("p"), *more], outputs)
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and reason in reasons(log)[0]


def test_only_for_a_product_and_for_at_most_half() -> None:
    unmatched(made([node("Relu", ["x"], ["p"]), *select("p")]))
    unmatched(made([*product(), node("Gather", ["p", "most"], ["y"], axis=1)]))
    unmatched(made([*product(), node("Slice", ["p", "one", "end", "axis1"], ["y"])]))


@pytest.mark.parametrize("between", [
    node("Softmax", ["p"], ["a"], axis=1), node("LayerNormalization", ["p", "places"], ["a"], axis=1),
    node("ReduceMean", ["p", "axis1"], ["a"]), node("CumSum", ["p", "one0"], ["a"]), node("Reshape", ["p", "flat"], ["a"]),
])  # fmt: skip
def test_operators_that_mix_the_places(between) -> None:
    nodes = [*product(), between, *select("a", axis=0 if between.op_type == "Reshape" else 1)]
    before = made(nodes, x=(1, 6, 8))
    after, log = run_pass(before, NAME)
    assert log.applied == 0 and ops(after) == ops(before)


def test_a_product_needs_its_right_operand_whole() -> None:
    nodes = [*product(), node("MatMul", ["mix", "p"], ["a"]), *select("a")]
    after = check(made(nodes, x=(1, 6, 8)), x=array(1, 6, 8))
    assert [n.input[0] for n in after.graph.node if n.op_type == "Gather"] == ["mix"]


def test_columns_of_a_product_are_left() -> None:
    unmatched(made([*product(), *select("p", axis=2)], x=(2, 6, 8)))


def test_a_captured_value_is_needed_whole() -> None:
    from onnx import helper

    def branch(name):
        return helper.make_graph([node("Neg", ["p"], [name])], name, [], [helper.make_tensor_value_info(name, 1, None)])

    nodes = [*product(), *select("p"), node("If", ["c"], ["z"], then_branch=branch("t"), else_branch=branch("e"))]
    before = model(nodes, {"x": (2, 6, 8), "c": []}, {"y": (2, 8), "z": None}, {k: WEIGHTS[k] for k in ("w", "b", "zero")},
                   types={"c": TensorProto.BOOL}, opset=18)  # fmt: skip
    _, log = run_pass(before, NAME)
    assert log.applied == 0 and "has 3 consumers" in reasons(log)[0]


def test_indices_that_a_caller_gives_are_left() -> None:
    before = model([*product(), node("Gather", ["p", "i"], ["y"], axis=1)], {"x": (2, 6, 8), "i": [1]}, ["y"],
                   {k: WEIGHTS[k] for k in ("w", "b")}, types={"i": TensorProto.INT64}, opset=18)  # fmt: skip
    unmatched(before)
