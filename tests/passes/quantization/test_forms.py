"""Operators that the runtime has no integer kernel for, in those that it has: the numbers, the kernels, what stays in float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.measurement import final_graph
from tests.passes.quantization.test_quantize_static import constants, data, kernels, quantize, snr
from tests.support import array, model, node, ops, session


def between(nodes, weights=None, *, channels: int = 8, opset: int = 17, size: int = 8) -> onnx.ModelProto:
    """x -> Conv -> a -> `nodes` -> b -> Conv -> y."""
    first, last = node("Conv", ["x", "w1", "b1"], ["a"]), node("Conv", ["b", "w2"], ["y"])
    made = {"w1": array(8, 4, 1, 1, seed=1), "b1": array(8, seed=2), "w2": array(6, channels, 1, 1, seed=3)} | (weights or {})
    return model([first, *nodes, last], {"x": ["n", 4, size, size]}, {"y": None}, made, opset=opset)


def one(op: str, extra=(), weights=None, *, channels: int = 8, opset: int = 17, **attributes) -> onnx.ModelProto:
    return between([node(op, ["a", *extra], ["b"], **attributes)], weights, channels=channels, opset=opset)


def vector(*values: float, shape=(8, 1, 1)) -> dict[str, np.ndarray]:
    return {"v": np.resize(np.asarray(values, np.float32), shape)}


BN = {"s": array(8, seed=4, low=0.5), "h": array(8, seed=5), "m": array(8, seed=6), "q": array(8, seed=7, low=0.5)}
I64 = np.int64
UP = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
PADS = {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1], I64)}
CASES = {
    "prelu": (one("PRelu", ["v"], vector(0.1, 0.3, -0.2, 0.9)), "3 Conv, 1 Add"),
    "prelu, slopes above 1": (one("PRelu", ["v"], vector(1.5, 1, 2.5)), "3 Conv, 1 Add"),
    "prelu, slopes on both sides": (one("PRelu", ["v"], vector(0.25, 1.5, -1, 1)), "4 Conv, 1 Add"),
    "prelu, one slope": (one("PRelu", ["v"], vector(0.25)), "2 Conv, 1 LeakyRelu"),
    "prelu, a slope for each row": (one("PRelu", ["v"], vector(0.25, 0.5, shape=(8, 1))), "2 Conv, 1 Add, 1 Mul"),
    "max": (between([node("Mul", ["v", "a"], ["s"]), node("Max", ["s", "a"], ["b"])], vector(0.1, 0.6)), "3 Conv, 1 Add"),
    "hard sigmoid": (one("HardSigmoid", alpha=0.25, beta=0.4), "2 Conv"),
    "hard swish": (one("HardSwish"), "2 Conv, 1 Mul"),
    "silu": (between([node("Sigmoid", ["a"], ["g"]), node("Mul", ["a", "g"], ["b"])]), "2 Conv, 1 Mul, 1 Sigmoid"),
    "batch normalization": (one("BatchNormalization", ["s", "h", "m", "q"], BN), "3 Conv"),
    "average pool": (one("AveragePool", kernel_shape=[3, 3], strides=[2, 2]), "3 Conv"),
    "average pool, padded": (one("AveragePool", kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1), "3 Conv"),
    "mean": (one("ReduceMean", axes=[2, -1]), "2 Conv, 1 GlobalAveragePool"),
    "pad": (one("Pad", ["p"], PADS), "2 Conv"),
    "pad, reflected": (one("Pad", ["p"], PADS, mode="reflect"), "2 Conv"),
    "times a number": (one("Mul", ["v"], vector(0.3, shape=())), "2 Conv"),
    "over a number": (one("Div", ["v"], vector(6, shape=(1, 1))), "2 Conv"),
    "times a negative number": (one("Mul", ["v"], vector(-0.3, shape=())), "2 Conv, 1 Mul"),
    "times a vector": (one("Mul", ["v"], vector(0.5, -3, 1)), "3 Conv"),
    "plus a vector": (one("Add", ["v"], vector(0.5, -3, 1)), "2 Conv, 1 Add"),
    "beside a constant": (one("Concat", ["v"], vector(0.5, -3, 1, shape=(1, 2, 8, 8)), channels=10, axis=1), "2 Conv, 1 Concat"),
    "nearest": (one("Resize", ["", "z"], {"z": np.array([1, 1, 2, 2], np.float32)}, **UP), "2 Conv"),
    "depth to space": (one("DepthToSpace", channels=2, blocksize=2), "2 Conv"),
    "slice": (one("Slice", ["i", "j", "i"], {"i": np.array([1], I64), "j": np.array([6], I64)}, channels=5), "2 Conv"),
    "gather": (one("Gather", ["i"], {"i": np.array([3, 1, 1], I64)}, channels=3, axis=1), "2 Conv"),
    "most": (one("ReduceMax", axes=[3]), "2 Conv"),
    "clip": (one("Clip", ["i", "j"], {"i": np.float32(-1), "j": np.float32(1)}), "2 Conv"),
}  # fmt: skip


def counted(after: onnx.ModelProto) -> str:
    """The integer kernels of the runtime in words, convolutions first."""
    found = {name.removeprefix("QLinear"): count for name, count in kernels(after).items()}
    return ", ".join(f"{found[name]} {name}" for name in sorted(found, key=lambda n: (n != "Conv", n)))


@pytest.mark.parametrize("case", CASES)
def test_form(case: str) -> None:
    before, wanted = CASES[case]
    after, log = quantize(before, data(1, 4, 8, 8))
    assert log.applied == 3 + (case == "silu")
    x = data(1, 4, 8, 8, count=1)[0]
    assert snr(before, after, x) > (25 if case != "mean" else 20)
    assert counted(after) == wanted
    read = {name for n in after.graph.node for name in n.input} | {o.name for o in after.graph.output}
    assert all(name in read for n in after.graph.node for name in n.output)
    final = final_graph(after.SerializeToString(), threads=1).operators
    assert final["QuantizeLinear"] == (2 if case in ("hard sigmoid", "hard swish", "clip") else 1)
    a, b = (session(after, optimize).run(None, {"x": x})[0] for optimize in (False, True))
    step = 2 * np.abs(a).max() / 255
    assert np.abs(a - b).max() < 3 * step  # numbers that lie between two integers may be rounded either way


def test_split_and_a_value_that_is_read_twice() -> None:
    nodes = [
        node("Split", ["a"], ["s", "t"], axis=1), node("Relu", ["s"], ["r"]), node("Add", ["r", "t"], ["u"]),
        node("Concat", ["u", "t"], ["b"], axis=1),
    ]  # fmt: skip
    before = between(nodes, opset=13)
    after, log = quantize(before, data(1, 4, 8, 8))
    assert log.applied == 6
    assert kernels(after) == {"QLinearConv": 2, "QLinearAdd": 1, "QLinearConcat": 1, "QLinearLeakyRelu": 1}
    assert final_graph(after.SerializeToString(), threads=1).operators["Split"] == 1
    assert snr(before, after, data(2, 4, 8, 8, count=1)[0]) > 25


def test_mean_without_the_places() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("ReduceMean", ["a"], ["b"], axes=[2, 3], keepdims=0), node("Gemm", ["b", "v"], ["y"])]
    before = model(nodes, {"x": ["n", 4, 8, 8]}, {"y": None}, {"w": array(8, 4, 1, 1), "v": array(8, 5)})
    after, _ = quantize(before, data(1, 4, 8, 8))
    assert kernels(after) == {"QLinearConv": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}
    assert snr(before, after, data(2, 4, 8, 8, count=1)[0]) > 20


def test_signed_activations() -> None:
    for case in ("prelu, slopes on both sides", "hard swish", "pad", "beside a constant", "batch normalization"):
        before = CASES[case][0]
        after, _ = quantize(before, data(1, 4, 8, 8), isa="neon-dotprod")
        assert constants(after)["a_zero_point"].dtype == np.int8
        assert snr(before, after, data(1, 4, 8, 8, count=1)[0]) > 25


def test_one_scale_a_weight() -> None:
    for case in ("prelu", "batch normalization", "average pool"):
        before = CASES[case][0]
        after, _ = quantize(before, data(1, 4, 8, 8), granularity="tensor")
        assert counted(after) == CASES[case][1]
        assert snr(before, after, data(2, 4, 8, 8, count=1)[0]) > 20


def test_pools_without_a_convolution_behind_them_are_left_in_float() -> None:
    """The runtime pools integers fast with channels last alone."""
    nodes = [
        node("Conv", ["x", "w"], ["a"]), node("Sigmoid", ["a"], ["s"]), node("MaxPool", ["s"], ["p"], kernel_shape=[2, 2]),
        node("Flatten", ["p"], ["f"]), node("Gemm", ["f", "v"], ["y"]),
    ]  # fmt: skip
    before = model(nodes, {"x": [1, 4, 3, 3]}, {"y": None}, {"w": array(8, 4, 1, 1), "v": array(32, 5)})
    after, log = quantize(before, data(1, 4, 3, 3))
    assert log.applied == 2
    assert kernels(after) == {"QLinearConv": 1, "QGemm": 1}
    final = final_graph(after.SerializeToString(), threads=1).operators
    assert any(name.endswith("MaxPool") and "Nhwc" not in name for name in final)
    assert (final["QuantizeLinear"], final["DequantizeLinear"]) == (2, 1)
    after, _ = quantize(one("MaxPool", kernel_shape=[2, 2]), data(1, 4, 8, 8))
    final = final_graph(after.SerializeToString(), threads=1).operators
    assert sum(count for name, count in final.items() if name.endswith("::NhwcMaxPool")) == 1


FLOAT = {
    "softmax": one("Softmax", axis=1),
    "linear": one("Resize", ["", "z"], {"z": np.array([1, 1, 2, 2], np.float32)}, mode="linear"),
    "average of fewer at the border": one("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
    "average, rounded up": one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "mean over channels": one("ReduceMean", channels=1, axes=[1]),
    "another border": one("Pad", ["p", "v"], PADS | vector(1, shape=())),
    "max of two": one("Max", ["v"], vector(1)),
    "slope that is no constant": between([node("Exp", ["a"], ["e"]), node("PRelu", ["a", "e"], ["b"])]),
    "falling": one("HardSigmoid", alpha=-0.25, beta=0.4),
    "an infinite factor": one("Mul", ["v"], vector(np.inf)),
    "over zero": one("Div", ["v"], vector(0, 1)),
    "plus zeros": one("Add", ["v"], vector(0)),
}


@pytest.mark.parametrize("case", FLOAT)
def test_left_in_float(case: str) -> None:
    before = FLOAT[case]
    samples = data(1, 4, 8, 8)
    after, _ = quantize(before, samples)
    assert all(count <= ops(after)[op] for op, count in ops(before).items() if op != "Conv")
    assert ops(after)["Conv"] == 2
    assert kernels(after)["QLinearConv"] <= 2
