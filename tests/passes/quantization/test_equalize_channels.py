"""Channels of layers one behind the other brought to like ranges: the same function, balanced weights, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.passes.quantization.test_quantize_static import constants, data, quantize, snr
from tests.passes.quantization.test_smooth_activations import uneven
from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "equalize-channels"


def chain(*between: str, last: int = 6) -> onnx.ModelProto:
    """Conv, depthwise Conv, 1 x 1 Conv with homogeneous functions between, whose channels differ much."""
    slope = ["slope"] if between[0] == "PRelu" else []
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4), node(between[0], ["c1", *slope], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], group=8, pads=[1] * 4), node(between[1], ["c2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["y"]),
    ]  # fmt: skip
    weights = {
        "w1": array(8, 3, 3, 3, seed=1) * uneven(8)[:, None, None, None], "b1": array(8, seed=2), "b2": array(8, seed=3),
        "w2": array(8, 1, 3, 3, seed=4) * uneven(8, seed=5)[::-1].reshape(8, 1, 1, 1), "w3": array(last, 8, 1, 1, seed=6),
        "slope": np.abs(array(8, 1, 1, seed=7)),
    }  # fmt: skip
    used = {i for n in nodes for i in n.input}
    return model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, last, 8, 8]}, {k: v for k, v in weights.items() if k in used})


def ranges(proto: onnx.ModelProto) -> list[np.ndarray]:
    """Of each weight of the chain the largest in each output and in each input channel."""
    w1, w2, w3 = (np.abs(constants(proto)[n.input[1]]) for n in proto.graph.node if n.op_type == "Conv")
    return [w1.max(axis=(1, 2, 3)), w2.max(axis=(1, 2, 3)), w2.max(axis=(1, 2, 3)), w3.max(axis=(0, 2, 3))]


@pytest.mark.parametrize("between", [("Relu", "Relu"), ("LeakyRelu", "Identity"), ("PRelu", "LeakyRelu")])
def test_a_chain_is_balanced_and_computes_the_same(between: tuple[str, str]) -> None:
    before = chain(*between)
    after, log = run_pass(before, NAME)
    assert log.applied == 2
    assert ops(after) == ops(before)
    assert_same(before, after, {"x": array(1, 3, 8, 8, seed=9)})
    out1, in2, out2, in3 = ranges(after)
    np.testing.assert_allclose(out1, in2, rtol=0.01)
    np.testing.assert_allclose(out2, in3, rtol=0.01)
    _, log = run_pass(after, NAME)
    assert log.applied == 0  # nothing moves any more


def test_one_scale_for_a_weight_loses_less() -> None:
    before = chain("Relu", "Relu")
    after, _ = run_pass(before, NAME)
    samples, x = data(1, 3, 8, 8), array(1, 3, 8, 8, seed=9)
    plain, equalized = (quantize(proto, samples, granularity="tensor")[0] for proto in (before, after))
    assert snr(before, equalized, x) > snr(before, plain, x) + 6


def test_two_matrices_and_all_that_read_one_value() -> None:
    nodes = [
        node("MatMul", ["x", "w1"], ["p"]), node("Add", ["p", "b"], ["a"]), node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "w2"], ["y"]), node("MatMul", ["r", "w3"], ["z"]),
    ]  # fmt: skip
    weights = {"w1": array(4, 6, seed=1) * uneven(6), "b": array(6, seed=2), "w2": array(6, 5, seed=3), "w3": 9 * array(6, 2, seed=4)}
    before = model(nodes, {"x": [3, 4]}, {"y": None, "z": None}, weights)
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    assert_same(before, after, {"x": array(3, 4, seed=9)})
    c = constants(after)
    both = np.maximum(np.abs(c["w2_folded"]).max(axis=1), np.abs(c["w3_folded"]).max(axis=1))
    np.testing.assert_allclose(np.abs(c["w1_folded"]).max(axis=0), both, rtol=0.01)


CONV = [node("Conv", ["x", "w1"], ["c"])]
CASES = {
    "clip": ([*CONV, node("Clip", ["c", "zero", "six"], ["r"]), node("Conv", ["r", "w2"], ["y"])], ["y"], "it comes from Clip"),
    "sigmoid": ([*CONV, node("Sigmoid", ["c"], ["r"]), node("Conv", ["r", "w2"], ["y"])], ["y"], "it comes from Sigmoid"),
    "residual": ([*CONV, node("Conv", ["c", "w2"], ["y"]), node("Add", ["c", "y"], ["z"])], ["z"], "also read by something else"),
    "output": ([*CONV, node("Conv", ["c", "w2"], ["y"])], ["y", "c"], "also read by something else"),
    "two layers": ([*CONV, node("Conv", ["x", "w3"], ["d"]), node("Add", ["c", "d"], ["s"]), node("Conv", ["s", "w2"], ["y"])], ["y"],
                   "there is not one layer before it"),
    "input": ([node("Relu", ["x"], ["r"]), node("Conv", ["r", "w1"], ["y"])], ["y"], "there is no layer before it"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str) -> None:
    nodes, outputs, reason = CASES[case]
    weights = {"w1": array(4, 4, 1, 1), "w2": array(4, 4, 1, 1, seed=1), "w3": array(4, 4, 1, 1, seed=2)}
    weights |= {"zero": np.float32(0), "six": np.float32(6)}
    used = {i for n in nodes for i in n.input}
    before = model(nodes, {"x": [1, 4, 5, 5]}, dict.fromkeys(outputs), {k: v for k, v in weights.items() if k in used})
    after, log = run_pass(before, NAME)
    assert log.applied == 0
    assert any(reason in r for r in reasons(log)), reasons(log)
    assert_same(before, after, {"x": array(1, 4, 5, 5)}, exact=True)


def test_channels_of_zeros_and_weights_that_a_caller_may_override() -> None:
    nodes = [node("Conv", ["x", "w1"], ["c"]), node("Relu", ["c"], ["r"]), node("Conv", ["r", "w2"], ["y"])]
    weights = {"w1": array(4, 3, 1, 1) * np.array([0, 1, 9, 1], np.float32)[:, None, None, None], "w2": array(2, 4, 1, 1, seed=1)}
    before = model(nodes, {"x": [1, 3, 5, 5]}, {"y": None}, weights)
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    assert_same(before, after, {"x": array(1, 3, 5, 5)})
    before = model(nodes, {"x": [1, 3, 5, 5]}, {"y": None}, weights, overridable=["w1"])
    _, log = run_pass(before, NAME)
    assert log.applied == 0
