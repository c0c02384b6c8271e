"""Arithmetic that does nothing: gone where that is proven, kept where it only looks so."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.passes.cleanup.noops import SIGNED, check
from tests.support import array, assert_same, model, node, ops, run_pass

ARITHMETIC = "eliminate-noop-arithmetic"


@pytest.mark.parametrize(
    ("kind", "constant"),
    [
        ("Mul", 1.0),
        ("Div", 1.0),
        ("Sub", 0.0),
        ("Add", -0.0),
        ("Pow", 1.0),
        ("Max", -np.inf),
        ("Min", np.inf),
        ("Mul", np.ones((1, 3), np.float32)),
        ("Mul", np.ones((2, 3), np.float32)),
    ],
)
def test_neutral_constants(kind: str, constant) -> None:
    check(
        ARITHMETIC,
        [node(kind, ["first", "k"], ["a"])],
        {"x": [2, 3]},
        {"k": np.asarray(constant, np.float32)},
        gone=True,
        feeds={"x": SIGNED},
    )


def test_neutral_constant_on_the_left() -> None:
    check(ARITHMETIC, [node("Mul", ["k", "first"], ["a"])], {"x": [2, 3]}, {"k": np.float32(1)}, gone=True, feeds={"x": SIGNED})
    check(ARITHMETIC, [node("Div", ["k", "first"], ["a"])], {"x": [2, 3]}, {"k": np.float32(1)}, gone=False, feeds={"x": SIGNED})
    check(ARITHMETIC, [node("Sub", ["k", "first"], ["a"])], {"x": [2, 3]}, {"k": np.float32(0)}, gone=False, feeds={"x": SIGNED})


@pytest.mark.parametrize(
    ("kind", "constant"), [("Mul", 1.000009), ("Add", 5e-9), ("Sub", 1e-45), ("Div", 0.9999999), ("Pow", 1.0000001), ("Max", -3e38)]
)
def test_nearly_neutral_constants_stay(kind: str, constant: float) -> None:
    check(ARITHMETIC, [node(kind, ["first", "k"], ["a"])], {"x": [2, 3]}, {"k": np.float32(constant)}, gone=False)


@pytest.mark.parametrize(("kind", "constant"), [("Add", 0.0), ("Sub", -0.0), ("Add", [0.0, -0.0, 0.0])])
def test_the_sign_of_zero(kind: str, constant) -> None:
    k = {"k": np.asarray(constant, np.float32)}
    reason = "-0.0 into 0.0" if np.ndim(constant) == 0 else None
    check(ARITHMETIC, [node(kind, ["first", "k"], ["a"])], {"x": [2, 3]}, k, gone=False, reason=reason, feeds={"x": SIGNED})
    if np.ndim(constant) == 0:
        check("eliminate-zero-additions", [node(kind, ["first", "k"], ["a"])], {"x": [2, 3]}, k, gone=True, feeds={"x": SIGNED})


def test_broadcasts_that_change_the_shape_stay() -> None:
    for shape, k in (([1, 3], (2, 3)), ([3], (1, 3)), (["n", 3], (2, 3))):
        feeds = {"x": array(2, 3) if len(shape) == 2 and shape[0] == "n" else array(*shape)}
        check(
            ARITHMETIC,
            [node("Mul", ["first", "k"], ["a"])],
            {"x": shape},
            {"k": np.ones(k, np.float32)},
            gone=False,
            feeds=feeds,
            reason="shape of the result",
        )
        check(
            "eliminate-zero-additions",
            [node("Add", ["first", "k"], ["a"])],
            {"x": shape},
            {"k": np.zeros(k, np.float32)},
            gone=False,
            feeds=feeds,
            reason="shape of the result",
        )


def test_integers_and_booleans() -> None:
    feeds = {"x": np.int64([[1, -2, 2**62 + 1]])}
    for kind, k in (("Add", 0), ("Sub", 0), ("Mul", 1), ("Div", 1)):
        check(
            ARITHMETIC,
            [node(kind, ["first", "k"], ["a"])],
            {"x": [1, 3]},
            {"k": np.int64(k)},
            gone=True,
            feeds=feeds,
            types={"x": TensorProto.INT64, "y": TensorProto.INT64},
        )
    check(
        ARITHMETIC,
        [node("Pow", ["first", "k"], ["a"])],
        {"x": [1, 3]},
        {"k": np.int64(1)},
        gone=False,
        reason="floating-point",
        feeds={"x": np.int64([[1, 2, 3]])},
        types={"x": TensorProto.INT64, "y": TensorProto.INT64},
    )
    for kind, k, gone in (("And", True, True), ("Or", False, True), ("Xor", False, True), ("And", False, False), ("Or", True, False)):
        before = model(
            [node("Not", ["x"], ["n"]), node(kind, ["n", "k"], ["a"]), node("Not", ["a"], ["y"])],
            {"x": [3]},
            ["y"],
            {"k": np.asarray(k)},
            types={"x": TensorProto.BOOL, "y": TensorProto.BOOL},
        )
        after, _ = run_pass(before, ARITHMETIC)
        assert (ops(after) == {"Not": 2}) == gone
        assert_same(before, after, {"x": np.array([True, False, True])})


def test_an_overridable_constant_is_none() -> None:
    check(
        ARITHMETIC,
        [node("Mul", ["first", "k"], ["a"])],
        {"x": [3]},
        {"k": np.float32(1)},
        gone=False,
        overridable=["k"],
        feeds={"x": array(3)},
    )


def test_where_with_a_constant_condition() -> None:
    inputs = {"x": [2, 3], "z": [3]}
    for condition in (True, [[True], [True]]):
        check(ARITHMETIC, [node("Where", ["c", "first", "z"], ["a"])], inputs, {"c": np.asarray(condition)}, gone=True)
        check(ARITHMETIC, [node("Where", ["c", "z", "first"], ["a"])], inputs, {"c": ~np.asarray(condition)}, gone=True)
    check(ARITHMETIC, [node("Where", ["c", "first", "z"], ["a"])], inputs, {"c": np.asarray([True, False, True])}, gone=False)
    check(
        ARITHMETIC, [node("Where", ["c", "z", "first"], ["a"])], inputs, {"c": np.asarray(True)}, gone=False, reason="shape of the result"
    )


def test_sums_of_one_input_and_clip() -> None:
    for kind in ("Sum", "Min", "Max", "Mean"):
        check(ARITHMETIC, [node(kind, ["first"], ["a"])], {"x": [2, 3]}, gone=True, feeds={"x": SIGNED})
        check(ARITHMETIC, [node(kind, ["first", "x"], ["a"])], {"x": [2, 3]}, gone=False, feeds={"x": SIGNED})
    check(ARITHMETIC, [node("Clip", ["first"], ["a"])], {"x": [2, 3]}, gone=False, feeds={"x": SIGNED}, reason="infinities")
    check(
        ARITHMETIC,
        [node("Clip", ["first"], ["a"])],
        {"x": [3]},
        gone=True,
        feeds={"x": np.int32([1, -2, 3])},
        types={"x": TensorProto.INT32, "y": TensorProto.INT32},
    )


# --- everywhere ---------------------------------------------------------------------------------------------------------


def test_names_of_outputs_stay() -> None:
    before = model(
        [node("Mul", ["x", "one"], ["y"]), node("Relu", ["x"], ["r"]), node("Mul", ["r", "one"], ["z"])],
        {"x": [3]},
        ["y", "z"],
        {"one": np.float32(1)},
    )
    after, _ = run_pass(before, ARITHMETIC)
    assert ops(after) == {"Identity": 1, "Relu": 1}
    assert_same(before, after, {"x": array(3)}, exact=True)


def test_in_subgraphs_and_functions() -> None:
    def branch(name: str, kind: str) -> onnx.GraphProto:
        return helper.make_graph(
            [node("Mul", ["r", "one"], [f"{name}_m"]), node(kind, [f"{name}_m"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", 1, [3])],
        )

    body = [node("Constant", [], ["one"], value_float=1.0), node("Mul", ["a", "one"], ["m"]), node("Neg", ["m"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    nodes = [
        node("F", ["x"], ["r"], domain="local"),
        node("If", ["cond"], ["y"], then_branch=branch("then", "Neg"), else_branch=branch("else", "Abs")),
    ]
    before = model(
        nodes,
        {"x": [3], "cond": []},
        {"y": [3]},
        {"one": np.float32(1)},
        types={"cond": TensorProto.BOOL},
        functions=[function],
        opsets={"local": 1},
    )
    after, log = run_pass(before, ARITHMETIC)
    assert log.applied == 3
    assert [n.op_type for n in after.functions[0].node] == ["Neg"]
    assert not after.graph.initializer
    for cond in (True, False):
        assert_same(before, after, {"x": array(3), "cond": np.asarray(cond)}, exact=True)
