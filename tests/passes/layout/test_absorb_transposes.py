"""Transposes before a flattened input: the weight is put in their order."""

import numpy as np
import pytest

from tests.passes.layout.transposes import last, t
from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "absorb-transposes"
X = {"x": ["N", 3, 4, 5]}
FLAT = np.asarray([-1, 60])


def check(nodes, weights, left, *, reason=None, outputs=("y",), inputs=X, shape=(2, 3, 4, 5), **kwargs):
    before = model(nodes, inputs, list(outputs), weights, **kwargs)
    after, log = run_pass(before, NAME)
    assert ops(after)["Transpose"] == left, ops(after)
    assert (reason is None) == (not log.refusals), reasons(log)
    if reason is not None:
        assert reason in reasons(log)[0]
    assert_same(before, after, {"x": array(*shape)}, exact=left > 0, rtol=1e-4)
    return after


@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (0, 3, 2, 1), (0, 2, 1, 3)])
@pytest.mark.parametrize(
    "flat", [node("Flatten", ["a"], ["b"]), node("Reshape", ["a", "flat"], ["b"]), node("Reshape", ["a", "copy"], ["b"])]
)
@pytest.mark.parametrize(
    "product, shape",
    [
        (node("MatMul", ["b", "w"], ["y"]), (60, 7)),
        (node("Gemm", ["b", "w", "c"], ["y"]), (60, 7)),
        (node("Gemm", ["b", "w"], ["y"], transB=1, alpha=0.5), (7, 60)),
    ],
)
def test_absorbed_into_the_weight(perm, flat, product, shape) -> None:
    used = {*flat.input, *product.input}
    weights = {"flat": FLAT, "copy": np.asarray([0, -1]), "w": array(*shape), "c": array(7)}
    after = check([t("x", "a", *perm), flat, product], {k: v for k, v in weights.items() if k in used}, 0)
    assert {n.op_type for n in after.graph.node} == {"Reshape", product.op_type}
    assert sum(np.prod(i.dims) for i in after.graph.initializer if len(i.dims) == 2) == 420


def test_what_is_left_alone() -> None:
    product = node("MatMul", ["b", "w"], ["y"])
    weights = {"flat": FLAT, "w": array(60, 7)}
    nodes = [last("x", "a"), node("Reshape", ["a", "flat"], ["b"]), product]
    check([*nodes, node("Neg", ["a"], ["z"])], weights, 1, outputs=("y", "z"), reason="has 2 consumers")
    check([*nodes, node("Neg", ["b"], ["z"])], weights, 1, outputs=("y", "z"), reason="has 2 consumers")
    check([*nodes, node("Neg", ["w"], ["z"])], weights, 1, outputs=("y", "z"), reason="the weight 'w' has 2 consumers")
    rows = {"flat": np.asarray([-1, 15]), "w": array(15, 7)}
    check(nodes, rows, 1)  # only two axes are made one
    check([t("x", "a", 1, 2, 3, 0), node("Flatten", ["a"], ["b"]), product], {"w": array(40, 7)}, 1)
    check([last("x", "a"), node("Flatten", ["a"], ["b"]), node("Gemm", ["b", "w"], ["y"], transA=1)], {"w": array(2, 7)}, 1, inputs={
        "x": [2, 3, 4, 5]
    })
    before = model(nodes, X, ["y"], weights, overridable=["w"])
    assert run_pass(before, NAME)[1].applied == 0


def test_the_transpose_of_a_matrix_is_an_attribute_of_gemm() -> None:
    inputs = {"x": [4, 5]}
    weights = {"w": array(4, 7), "v": array(7, 5)}
    check([t("x", "a", 1, 0), node("Gemm", ["a", "w"], ["y"])], {"w": weights["w"]}, 0, inputs=inputs, shape=(4, 5))
    check([t("x", "a"), node("Gemm", ["v", "a"], ["y"])], {"v": weights["v"]}, 0, inputs=inputs, shape=(4, 5))
    check([t("x", "a"), node("Gemm", ["a", "v"], ["y"], transA=1, transB=1)], {"v": weights["v"]}, 0, inputs=inputs, shape=(4, 5))
    check([t("x", "a"), node("Gemm", ["a", "x"], ["y"])], {}, 0, inputs=inputs, shape=(4, 5))
    check([t("x", "a"), node("Gemm", ["a", "a"], ["y"], transA=1)], {}, 1, inputs=inputs, shape=(4, 5), reason="has 2 consumers")


@pytest.mark.parametrize("shared, left", [(False, 0), (True, 1)])
def test_moved_to_where_a_weight_takes_it(shared: bool, left: int) -> None:
    nodes = [
        last("x", "a"), node("Add", ["a", "bias"], ["b"]), node("Relu", ["b"], ["c"]), node("Reshape", ["c", "flat"], ["d"]),
        node("MatMul", ["d", "w"], ["y"]),
    ]
    weights = {"bias": array(3), "flat": FLAT, "w": array(60, 7)}
    if shared:
        nodes.append(node("Neg", ["w"], ["z"]))
    before = model(nodes, X, ["y", "z"] if shared else ["y"], weights)
    moved, log = run_pass(before, "move-transposes-across-functions")
    assert log.applied == (not shared) and run_pass(moved, "move-transposes-across-functions")[1].applied == 0
    assert run_pass(before, "move-transposes")[1].applied == 0  # no bit may change
    after, _ = run_pass(moved, NAME)
    assert ops(after)["Transpose"] == left
    assert_same(before, after, {"x": array(2, 3, 4, 5)}, rtol=1e-4)
