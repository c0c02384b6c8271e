"""Transposes: cancelled, merged, moved; never where more nodes would result."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "eliminate-transposes"
X = {"x": [2, 3, 4, 5]}
FEEDS = {"x": array(2, 3, 4, 5)}


def t(source: str, target: str, *perm: int) -> onnx.NodeProto:
    return node("Transpose", [source], [target], **({"perm": list(perm)} if perm else {}))


def check(
    nodes, left, *, name=NAME, initializers=None, reason=None, inputs=X, outputs=("y",), feeds=FEEDS, exact=True, opset=17, **options
):
    before = model(nodes, inputs, list(outputs), initializers, opset=opset)
    after, log = run_pass(before, name, **options)
    assert dict(ops(after)) == left
    assert (reason is None) == (not log.refusals), reasons(log)
    if reason is not None:
        assert reason in reasons(log)[0]
    assert_same(before, after, feeds, exact=exact)
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


def test_across_element_wise_operators() -> None:
    weights = {"k": np.float32(3), "low": np.float32(-1), "one": array(1)}
    nodes = [
        t("x", "a", 0, 2, 3, 1),
        node("Relu", ["a"], ["b"]),
        node("Mul", ["k", "b"], ["c"]),
        node("Clip", ["c", "low"], ["d"]),
        node("Sub", ["one", "d"], ["e"]),
        node("LeakyRelu", ["e"], ["f"], alpha=0.3),
        node("Cast", ["f"], ["g"], to=TensorProto.FLOAT16),
        t("g", "h", 0, 3, 1, 2),
        node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
    ]
    check(nodes, {"Relu": 1, "Mul": 1, "Clip": 1, "Sub": 1, "LeakyRelu": 1, "Cast": 2}, initializers=weights)
    check(nodes, {"Relu": 1, "Mul": 1, "Clip": 1, "Sub": 1, "LeakyRelu": 1, "Cast": 2, "Transpose": 2}, initializers=weights, reach=5)


def test_quantized_in_between() -> None:
    scalars = {"s": np.float32(0.1), "z": np.uint8(3)}
    nodes = [
        t("x", "a", 0, 2, 3, 1),
        node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        t("d", "b", 0, 3, 1, 2),
        node("Neg", ["b"], ["y"]),
    ]
    check(nodes, {"QuantizeLinear": 1, "DequantizeLinear": 1, "Neg": 1}, initializers=scalars)
    axis = {"s": np.full(5, 0.1, np.float32), "z": np.zeros(5, np.uint8)}
    nodes[1:3] = [node("QuantizeLinear", ["a", "s", "z"], ["q"], axis=2), node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=2)]
    check(nodes, {"QuantizeLinear": 1, "DequantizeLinear": 1, "Neg": 1, "Transpose": 2}, initializers=axis)


@pytest.mark.parametrize(
    "between",
    [
        [node("Softmax", ["a"], ["b"], axis=-1)],
        [node("Mul", ["a", "v"], ["b"])],
        [node("Add", ["a", "a"], ["b"])],
        [node("Exp", ["a"], ["b"])],
        [node("Add", ["a", "wide"], ["b"])],
    ],
)
def test_not_across_what_sees_the_layout_or_approximates(between) -> None:
    weights = {"v": array(3), "wide": array(1, 1, 1, 1, 1)}
    nodes = [t("x", "a", 0, 2, 3, 1), *between, *([] if "wide" in between[0].input else [t("b", "c", 0, 3, 1, 2)])]
    nodes += [node("Neg", [nodes[-1].output[0]], ["y"])]
    check(nodes, dict(ops(model(nodes, X, ["y"], weights))), initializers=weights)


def test_across_functions_only_where_rounding_may_differ() -> None:
    nodes = [t("x", "a", 0, 2, 3, 1), node("Sigmoid", ["a"], ["b"]), t("b", "c", 0, 3, 1, 2), node("Neg", ["c"], ["y"])]
    check(nodes, {"Transpose": 2, "Sigmoid": 1, "Neg": 1})
    check(nodes, {"Sigmoid": 1, "Neg": 1}, name="eliminate-transposes-across-functions", exact=False)


def test_other_consumers_in_between() -> None:
    nodes = [t("x", "a", 0, 2, 3, 1), node("Relu", ["a"], ["b"]), t("b", "y", 0, 3, 1, 2), node("Neg", ["b"], ["z"])]
    check(nodes, {"Transpose": 2, "Relu": 1, "Neg": 1}, outputs=("y", "z"), reason="saves nothing")
    nodes = [t("x", "a", 0, 2, 3, 1), node("Relu", ["a"], ["b"]), t("b", "y", 1, 0, 2, 3), node("Neg", ["a"], ["z"])]
    check(nodes, {"Transpose": 2, "Relu": 1, "Neg": 1}, outputs=("y", "z"), reason="saves nothing")
    nodes[2] = t("b", "y", 0, 3, 1, 2)  # these cancel: the first stays for the Neg, the second goes
    check(nodes, {"Transpose": 1, "Relu": 1, "Neg": 1}, outputs=("y", "z"))


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
