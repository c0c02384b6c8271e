"""Transposes in a row: cancelled, merged."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support import array, assert_same, model, node, ops, run_pass

NAME = "eliminate-transposes"
X = {"x": [2, 3, 4, 5]}
FEEDS = {"x": array(2, 3, 4, 5)}


def t(source: str, target: str, *perm: int) -> onnx.NodeProto:
    return node("Transpose", [source], [target], **({"perm": list(perm)} if perm else {}))


def check(nodes, left, *, outputs=("y",)):
    before = model(nodes, X, list(outputs))
    after, _ = run_pass(before, NAME)
    assert dict(ops(after)) == left
    assert_same(before, after, FEEDS, exact=True)
    return after


def test_two_that_cancel() -> None:
    check([node("Neg", ["x"], ["n"]), t("n", "a", 0, 2, 3, 1), t("a", "b", 0, 3, 1, 2), node("Relu", ["b"], ["y"])], {"Neg": 1, "Relu": 1})
    check([node("Neg", ["x"], ["n"]), t("n", "a"), t("a", "b"), node("Relu", ["b"], ["y"])], {"Neg": 1, "Relu": 1})
    check([node("Neg", ["x"], ["n"]), t("n", "a"), t("a", "b", 3, 2, 1, 0), node("Relu", ["b"], ["y"])], {"Neg": 1, "Relu": 1})


def test_two_that_merge() -> None:
    after = check([t("x", "a", 0, 2, 3, 1), t("a", "y", 1, 0, 2, 3)], {"Transpose": 1})
    assert list(after.graph.node[0].attribute[0].ints) == [2, 0, 3, 1]
    check(
        [t("x", "a", 1, 2, 3, 0), t("a", "b", 1, 2, 3, 0), t("b", "c", 1, 2, 3, 0), t("c", "d", 1, 2, 3, 0), node("Neg", ["d"], ["y"])],
        {"Neg": 1},
    )


def test_a_first_with_other_consumers_stays_for_them() -> None:
    check(
        [t("x", "a", 0, 2, 3, 1), t("a", "b", 0, 3, 1, 2), node("Relu", ["a"], ["z"]), node("Neg", ["b"], ["y"])],
        {"Transpose": 1, "Relu": 1, "Neg": 1},
        outputs=("y", "z"),
    )
    check([t("x", "z", 0, 2, 3, 1), t("z", "y", 1, 0, 2, 3)], {"Transpose": 2}, outputs=("y", "z"))


def test_graph_outputs_keep_their_names() -> None:
    check([node("Neg", ["x"], ["n"]), t("n", "a", 0, 2, 3, 1), t("a", "y", 0, 3, 1, 2)], {"Neg": 1})
    check([t("x", "a", 0, 2, 3, 1), t("a", "y", 0, 3, 1, 2)], {"Identity": 1})


def test_the_first_outside_of_a_subgraph() -> None:
    then = helper.make_graph(
        [node("Transpose", ["a"], ["then_y"], perm=[1, 0])], "then", [], [helper.make_tensor_value_info("then_y", 1, [2, 3])]
    )
    other = helper.make_graph(
        [t("x", "p", 1, 0), t("p", "q", 1, 0), node("Neg", ["q"], ["else_y"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_y", 1, [2, 3])],
    )
    before = model(
        [t("x", "a", 1, 0), node("If", ["cond"], ["y"], then_branch=then, else_branch=other)],
        {"x": [2, 3], "cond": []},
        {"y": [2, 3]},
        types={"cond": TensorProto.BOOL},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 1 and ops(after)["Transpose"] == 1
    for cond in (True, False):
        assert_same(before, after, {"x": array(2, 3), "cond": np.asarray(cond)}, exact=True)
