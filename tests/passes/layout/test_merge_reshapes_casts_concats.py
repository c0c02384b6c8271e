"""Reshapes, squeezes, casts, concats and slices in a row: done at once where that is the same."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass


def check(name, nodes, left, *, inputs, outputs=("y",), initializers=None, reason=None, feeds=None, **kwargs):
    before = model(nodes, inputs, outputs if isinstance(outputs, dict) else list(outputs), initializers, **kwargs)
    after, log = run_pass(before, name)
    assert dict(ops(after)) == left
    assert (reason is None) == (not log.refusals), reasons(log)
    if reason is not None:
        assert reason in reasons(log)[0]
    assert_same(before, after, feeds or {n: array(*s) for n, s in inputs.items()}, exact=True)
    return after


# --- reshapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["Reshape", "Flatten", "Unsqueeze"])
def test_reshape_takes_what_stands_before(first: str) -> None:
    node1 = {
        "Reshape": node("Reshape", ["x", "s"], ["a"]),
        "Flatten": node("Flatten", ["x"], ["a"]),
        "Unsqueeze": node("Unsqueeze", ["x", "u"], ["a"]),
    }
    weights = {"s": np.asarray([6, 4]), "u": np.asarray([1]), "t": np.asarray([4, -1])}
    check(
        "merge-reshapes", [node1[first], node("Reshape", ["a", "t"], ["y"])], {"Reshape": 1}, inputs={"x": [2, 3, 4]}, initializers=weights
    )


def test_reshape_that_copies_dimensions() -> None:
    nodes = [node("Reshape", ["x", "s"], ["a"]), node("Reshape", ["a", "t"], ["y"])]
    weights = {"s": np.asarray([6, 4]), "t": np.asarray([0, 2, -1])}
    check("merge-reshapes", nodes, {"Reshape": 1}, inputs={"x": [2, 3, 4]}, initializers=weights)
    # One unknown dimension can be left to -1; two cannot.
    weights = {"s": np.asarray([0, -1]), "t": np.asarray([0, 2, -1])}
    check("merge-reshapes", nodes, {"Reshape": 1}, inputs={"x": ["n", 3, 4]}, initializers=weights, feeds={"x": array(2, 3, 4)})
    check(
        "merge-reshapes",
        nodes,
        {"Reshape": 2},
        inputs={"x": ["n", "m", 4]},
        initializers=weights,
        feeds={"x": array(2, 3, 4)},
        outputs={"y": [None, None, None]},
        reason="not known",
    )


@pytest.mark.parametrize(
    "first, second, left",
    [
        (node("Reshape", ["x", "s"], ["a"]), node("Unsqueeze", ["a", "u"], ["y"]), {"Reshape": 1}),
        (node("Reshape", ["x", "s"], ["a"]), node("Flatten", ["a"], ["y"], axis=2), {"Reshape": 1}),
        (node("Flatten", ["x"], ["a"]), node("Unsqueeze", ["a", "u"], ["y"]), {"Reshape": 1}),
        (node("Flatten", ["x"], ["a"]), node("Flatten", ["a"], ["y"], axis=0), {"Reshape": 1}),
        (node("Squeeze", ["x", "u"], ["a"]), node("Flatten", ["a"], ["y"]), {"Reshape": 1}),
        (node("Squeeze", ["x", "u"], ["a"]), node("Unsqueeze", ["a", "end"], ["y"]), {"Reshape": 1}),
        (node("Unsqueeze", ["x", "u"], ["a"]), node("Unsqueeze", ["a", "end"], ["y"]), {"Unsqueeze": 2}),
    ],
)
def test_all_that_only_reshape(first, second, left) -> None:
    weights = {"s": np.asarray([0, 2, -1]), "u": np.asarray([1]), "end": np.asarray([-1])}
    used = {k: v for k, v in weights.items() if k in first.input or k in second.input}
    check("merge-reshapes", [first, second], left, inputs={"x": ["n", 1, 4]}, initializers=used, feeds={"x": array(3, 1, 4)})
    nodes = [first, second, node("Neg", ["a"], ["z"])]
    kept = {first.op_type: 1} if first.op_type != second.op_type else {first.op_type: 2}
    check(
        "merge-reshapes", nodes, {"Neg": 1, second.op_type: 1, **kept}, inputs={"x": ["n", 1, 4]}, initializers=used, outputs=("y", "z"),
        feeds={"x": array(3, 1, 4)}, reason=None if "Unsqueeze" in left else "has 2 consumers",
    )


def test_reshape_with_a_dimension_of_zero() -> None:
    nodes = [node("Reshape", ["x", "s"], ["a"]), node("Reshape", ["a", "t"], ["y"], allowzero=1)]
    weights = {"s": np.asarray([0, 12]), "t": np.asarray([3, 0])}
    check("merge-reshapes", nodes, {"Reshape": 1}, inputs={"x": [0, 3, 4]}, initializers=weights)
    nodes[1] = node("Reshape", ["a", "t"], ["y"])
    weights["t"] = np.asarray([0, 4, 3])
    check("merge-reshapes", nodes, {"Reshape": 1}, inputs={"x": [0, 3, 4]}, initializers=weights)


def test_reshape_to_a_shape_that_a_caller_gives() -> None:
    nodes = [node("Reshape", ["x", "s"], ["a"]), node("Reshape", ["a", "t"], ["y"])]
    before = model(nodes, {"x": [2, 3, 4], "t": [2]}, {"y": [None, None]}, {"s": np.asarray([6, 4])}, types={"t": TensorProto.INT64})
    after, log = run_pass(before, "merge-reshapes")
    assert ops(after) == {"Reshape": 2} and not log.refusals


# --- squeezes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 17])
def test_squeezes(opset: int) -> None:
    def step(kind: str, source: str, target: str, axes: list[int]) -> onnx.NodeProto:
        if opset < 13:
            return node(kind, [source], [target], axes=axes)
        return node(kind, [source, f"axes{axes}"], [target])

    weights = (
        {f"axes{list(a)}": np.asarray(a) for a in itertools.chain(*(itertools.permutations(range(-3, 5), n) for n in (1, 2)))}
        if opset >= 13
        else {}
    )

    def squeeze(kinds, first, second, shape, left, **kwargs):
        nodes = [node("Neg", ["x"], ["n"]), step(kinds[0], "n", "a", first), step(kinds[1], "a", "b", second), node("Neg", ["b"], ["y"])]
        used = {k: v for k, v in weights.items() if any(k in n.input for n in nodes)}
        check("merge-squeezes", nodes, {"Neg": 2, **left}, inputs={"x": shape}, initializers=used, opset=opset, **kwargs)

    both = ("Squeeze", "Unsqueeze")
    squeeze(both, [1], [1], [2, 1, 3], {})
    squeeze(both, [-2], [1], [2, 1, 3], {})
    squeeze(both, [1], [0], [2, 1, 3], {"Squeeze": 1, "Unsqueeze": 1})
    squeeze(both[::-1], [1], [1], [2, 3], {})
    squeeze(both[::-1], [0, 3], [3, 0], [2, 3], {})
    squeeze(both[::-1], [1], [-2], [2, 3], {})
    squeeze(both[::-1], [1], [0], [1, 3], {"Squeeze": 1, "Unsqueeze": 1})
    squeeze(("Unsqueeze", "Unsqueeze"), [1], [1], [2, 3], {"Unsqueeze": 1})
    squeeze(("Unsqueeze", "Unsqueeze"), [0], [-1], [2, 3], {"Unsqueeze": 1})
    squeeze(("Squeeze", "Squeeze"), [1], [1], [2, 1, 1, 3], {"Squeeze": 1})
    squeeze(("Squeeze", "Squeeze"), [2], [0], [1, 2, 1, 3], {"Squeeze": 1})


def test_all_merged_unsqueezes_agree() -> None:
    for first, second in itertools.product([[0], [1], [2], [0, 2]], [[0], [1], [3], [1, 2]]):
        nodes = [node("Unsqueeze", ["x", "a"], ["u"]), node("Unsqueeze", ["u", "b"], ["y"])]
        check(
            "merge-squeezes", nodes, {"Unsqueeze": 1}, inputs={"x": [2, 3]}, initializers={"a": np.asarray(first), "b": np.asarray(second)}
        )


def test_squeezes_with_other_consumers() -> None:
    nodes = [node("Unsqueeze", ["x", "a"], ["z"]), node("Unsqueeze", ["z", "a"], ["y"])]
    check(
        "merge-squeezes",
        nodes,
        {"Unsqueeze": 2},
        inputs={"x": [2, 3]},
        initializers={"a": np.asarray([0])},
        outputs=("y", "z"),
        reason="graph output",
    )


# --- casts ------------------------------------------------------------------------------------------------------------

T = TensorProto
DATA = {
    T.FLOAT: np.float32([0.0, -0.0, 1 / 3, 1e-42, 65519.9, 3e38, -7.7, 2**24 + 2]),
    T.FLOAT16: np.float16([0.0, -0.0, 1 / 3, 6e-8, 65504, -7.7]),
    T.DOUBLE: np.float64([0.0, 1 / 3, 1e-300, 1e300, -7.7]),
    T.INT8: np.int8([0, 1, -128, 127]),
    T.UINT8: np.uint8([0, 1, 128, 255]),
    T.INT32: np.int32([0, -1, 2**31 - 1, -(2**31), 2**24 + 1, 300]),
    T.INT64: np.int64([0, -1, 2**63 - 1, 2**53 + 1, 300]),
    T.BOOL: np.array([True, False]),
}


@pytest.mark.parametrize("source", list(DATA))
def test_casts_through_every_type_give_the_same(source: int) -> None:
    """Merged or refused, the answer stays; on every value that has one answer."""
    for between, target in itertools.product(DATA, DATA):
        nodes = [node("Identity", ["x"], ["i"]), node("Cast", ["i"], ["a"], to=between), node("Cast", ["a"], ["y"], to=target)]
        before = model(nodes, {"x": DATA[source].shape}, {"y": DATA[source].shape}, types={"x": source, "y": target})
        after, log = run_pass(before, "merge-casts")
        if log.applied:
            assert_same(before, after, {"x": DATA[source]}, exact=True)
            assert ops(after) == ({"Identity": 1} if source == target else {"Identity": 1, "Cast": 1})
        else:
            assert log.refusals or source == between or between == target


def test_casts_that_round_stay() -> None:
    nodes = [node("Cast", ["x"], ["a"], to=T.FLOAT16), node("Cast", ["a"], ["y"], to=T.FLOAT)]
    check("merge-casts", nodes, {"Cast": 2}, inputs={"x": [5]}, reason="FLOAT16 in between does not hold every FLOAT exactly")
    nodes = [node("Cast", ["x"], ["a"], to=T.DOUBLE), node("Cast", ["a"], ["y"], to=T.INT8)]
    check("merge-casts", nodes, {"Cast": 2}, inputs={"x": [5]}, reason="may differ", types={"y": T.INT8})


def test_casts_that_lose_nothing_go() -> None:
    nodes = [
        node("Neg", ["x"], ["n"]),
        node("Cast", ["n"], ["a"], to=T.DOUBLE),
        node("Cast", ["a"], ["b"], to=T.FLOAT),
        node("Neg", ["b"], ["y"]),
    ]
    check("merge-casts", nodes, {"Neg": 2}, inputs={"x": [5]})


# --- concats ----------------------------------------------------------------------------------------------------------


def test_concats_along_one_axis() -> None:
    nodes = [
        node("Concat", ["x", "z"], ["a"], axis=1),
        node("Concat", ["z", "a", "x"], ["b"], axis=-1),
        node("Concat", ["b", "x"], ["y"], axis=1),
    ]
    after = check("merge-concats", nodes, {"Concat": 1}, inputs={"x": [2, 3], "z": [2, 1]})
    assert list(after.graph.node[0].input) == ["z", "x", "z", "x", "x"]


def test_concats_along_two_axes_or_with_other_consumers() -> None:
    inputs = {"x": [2, 3], "z": [2, 3]}
    nodes = [node("Concat", ["x", "z"], ["a"], axis=0), node("Concat", ["a", "a"], ["y"], axis=1)]
    check("merge-concats", nodes, {"Concat": 2}, inputs=inputs)
    nodes = [node("Concat", ["x", "z"], ["a"], axis=1), node("Concat", ["a", "x"], ["y"], axis=1), node("Neg", ["a"], ["n"])]
    check("merge-concats", nodes, {"Concat": 2, "Neg": 1}, inputs=inputs, outputs=("y", "n"), reason="2 consumers")
    nodes[1] = node("Concat", ["a", "a"], ["y"], axis=1)
    check("merge-concats", nodes[:2], {"Concat": 2}, inputs=inputs, reason="2 consumers")


def test_concats_stay_below_a_number_of_inputs() -> None:
    nodes = [node("Concat", ["x"] * 3, ["a"], axis=1), node("Concat", ["a", "x"], ["y"], axis=1)]
    before = model(nodes, {"x": [2, 3]}, ["y"])
    after, log = run_pass(before, "merge-concats", max_inputs=4)
    assert ops(after) == {"Concat": 2} and "more than 4 inputs" in reasons(log)[0]


def test_in_functions_new_constants_are_nodes() -> None:
    body = [
        node("Constant", [], ["p"], value_ints=[0]),
        node("Constant", [], ["q"], value_ints=[1]),
        node("Unsqueeze", ["a", "p"], ["u"]),
        node("Unsqueeze", ["u", "q"], ["b"]),
    ]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    before = model([node("F", ["x"], ["y"], domain="local")], {"x": [3]}, {"y": [1, 1, 3]}, functions=[function], opsets={"local": 1})
    after, _ = run_pass(before, "merge-squeezes")
    assert sorted(n.op_type for n in after.functions[0].node) == ["Constant", "Unsqueeze"]
    assert_same(before, after, {"x": array(3)}, exact=True)
