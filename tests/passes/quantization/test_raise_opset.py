"""Older opsets made 13: the same outputs, bit for bit, by every operator that changed on the way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "raise-opset"
I64 = np.int64


def build(opset: int, nodes, weights=None, shape=(2, 3, 4, 6)) -> onnx.ModelProto:
    return model(nodes, {"x": list(shape)}, {"y": None}, weights, opset=opset)


def alone(opset: int, op: str, extra=(), weights=None, **attributes) -> onnx.ModelProto:
    return build(opset, [node(op, ["x", *extra], ["y"], **attributes)], weights)


BN = {n: array(3, seed=i, low=0.5) for i, n in enumerate("shmv")}
CASES = [
    alone(7, "BatchNormalization", "shmv", BN, spatial=1), alone(8, "Upsample", scales=[1.0, 1.0, 2.0, 3.0], mode="nearest"),
    alone(9, "Upsample", ["z"], {"z": np.array([1, 1, 2, 1.5], np.float32)}, mode="linear"),
    alone(10, "Resize", ["z"], {"z": np.array([1, 1, 1.5, 2.2], np.float32)}, mode="nearest"),
    alone(10, "Resize", ["z"], {"z": np.array([1, 1, 0.6, 0.7], np.float32)}, mode="nearest"),
    alone(10, "Resize", ["z"], {"z": np.array([1, 1, 0.6, 1.7], np.float32)}, mode="linear"),
    alone(9, "Slice", starts=[1, -3], ends=[3, 100], axes=[2, 3]), alone(9, "Slice", starts=[1, 0], ends=[2, 3]),
    build(9, [node("TopK", ["x"], ["y", "i"], k=2, axis=-1)]), alone(7, "Dropout", ratio=0.3), alone(11, "Dropout", ratio=0.3),
    alone(10, "Pad", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=1.5), alone(10, "Pad", pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="reflect"),
    alone(10, "Clip", min=-0.5, max=0.25), alone(10, "Clip", max=0.25), alone(10, "Clip"),
    alone(10, "Scatter", ["i", "u"], {"i": np.array([[[[0, 2]]]], I64), "u": array(1, 1, 1, 2)}, axis=3),
    build(12, [node("Split", ["x"], ["a", "b"], axis=3, split=[2, 4]), node("Concat", ["b", "a"], ["y"], axis=3)]),
    build(12, [node("Split", ["x"], ["a", "b"], axis=3), node("Sub", ["b", "a"], ["y"])]),
    build(11, [node("Unsqueeze", ["x"], ["u"], axes=[0, 5]), node("Squeeze", ["u"], ["y"], axes=[0])]),
    alone(12, "ReduceSum", axes=[1, -1], keepdims=0), alone(12, "ReduceSum"), alone(11, "ReduceMean", axes=[2]),
    alone(12, "Softmax"), alone(12, "Softmax", axis=-1), alone(12, "LogSoftmax", axis=2), alone(11, "Hardmax", axis=0),
]  # fmt: skip


@pytest.mark.parametrize("before", CASES, ids=lambda m: f"{m.graph.node[0].op_type}-{m.opset_import[0].version}")
def test_same_outputs(before: onnx.ModelProto) -> None:
    after, log = run_pass(before, NAME)
    assert after.opset_import[0].version == 13
    assert (log.applied, log.refusals) == (1, [])
    assert_same(before, after, {"x": array(2, 3, 4, 6, seed=9)}, exact=True)


def test_softmax_over_places_of_one_element_needs_no_reshape() -> None:
    before = build(11, [node("Softmax", ["x"], ["y"])], shape=(2, 5, 1, 1))
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Softmax": 1}
    assert_same(before, after, {"x": array(2, 5, 1, 1)}, exact=True)


def test_softmax_of_unknown_rank() -> None:
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("Softmax", ["r"], ["y"])]
    before = model(nodes, {"x": [2, 12], "s": [3]}, {"y": [None, None, None]}, types={"s": TensorProto.INT64}, opset=12)
    after, _ = run_pass(before, NAME)
    assert_same(before, after, {"x": array(2, 12), "s": np.array([2, 3, 4])}, exact=True)


def test_branches_are_raised_too() -> None:
    def branch(name: str, *nodes) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)])

    then = branch("then", node("Squeeze", ["x"], ["t"], axes=[1]))
    other = branch("else", node("Softmax", ["x"], ["e0"], axis=1), node("Squeeze", ["e0"], ["e"], axes=[1]))
    nodes = [node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    before = model(nodes, {"x": [2, 1, 4], "c": []}, {"y": [2, 4]}, types={"c": TensorProto.BOOL}, opset=11)
    after, _ = run_pass(before, NAME)
    for choice in (True, False):
        assert_same(before, after, {"x": array(2, 1, 4), "c": np.array(choice)}, exact=True)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (alone(7, "BatchNormalization", "shmv", {n: array(3, 4, 6, low=0.5) for n in "shmv"}, spatial=0), "spatial=0 has no equal"),
        (alone(7, "Upsample", scales=[1.0, 1.0, 0.5, 2.0]), "shrinks and stretches"),
        (
            model([node("Dropout", ["x"], ["d", "m"]), node("Mul", ["d", "m"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}, opset=7),
            "output 'm' is used",
        ),
    ],
)
def test_refusals_leave_all_as_it_was(before: onnx.ModelProto, reason: str) -> None:
    before.graph.node.insert(0, node("Pad", ["x"], ["p"], pads=[0] * 8))
    before.graph.node[1].input[0] = "p"
    after, log = run_pass(before, NAME)
    assert after.opset_import[0].version == 7
    assert [n.attribute for n in after.graph.node] == [n.attribute for n in before.graph.node]
    assert len(after.graph.initializer) == len(before.graph.initializer)
    assert any(reason in r and "so the opset stays 7" in r for r in reasons(log))


@pytest.mark.parametrize("opset", [6, 13, 17])
def test_other_opsets_are_left_alone(opset: int) -> None:
    after, log = run_pass(build(opset, [node("Relu", ["x"], ["y"])]), NAME)
    assert after.opset_import[0].version == opset
    assert log.applied == 0
