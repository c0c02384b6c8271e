"""Shapes of the operators of com.microsoft against what ONNX Runtime computes."""

import numpy as np
import pytest
from onnx import TensorProto

from tests.rewriting.test_shapes import holds
from tests.support import array, model, node

MS = {"com.microsoft": 1}


def contrib(op, inputs, outputs, **attributes):
    return node(op, inputs, outputs, domain="com.microsoft", **attributes)


def one(op, inputs, constants=None, *, rank, types=None, **attributes):
    nodes = [contrib(op, [*inputs, *(constants or {})], ["y"], **attributes)]
    return model(nodes, inputs, {"y": [None] * rank}, constants, opsets=MS, types=types)


@pytest.mark.parametrize("op", ["Gelu", "QuickGelu", "FastGelu"])
def test_elementwise(op) -> None:
    context, values = holds(one(op, {"x": ["n", 4]}, rank=2), {"x": array(3, 4)})
    assert context.dims(values["y"]) == ("n", 4)


def test_skip_normalization() -> None:
    nodes = [contrib("SkipLayerNormalization", ["x", "r", "g"], ["y", "", "", "s"])]
    before = model(nodes, {"x": ["n", "t", 4], "r": ["n", "t", 4]}, {"y": [None] * 3, "s": [None] * 3}, {"g": array(4)}, opsets=MS)
    context, values = holds(before, {"x": array(2, 3, 4), "r": array(2, 3, 4)})
    assert context.dims(values["y"]) == context.dims(values["s"]) == ("n", "t", 4)


def test_embeddings() -> None:
    weights = {"w": array(9, 8), "p": array(6, 8), "t": array(2, 8), "g": array(8), "b": array(8)}
    nodes = [contrib("EmbedLayerNormalization", ["i", "s", *weights], ["y", "", "sum"])]
    types = {"i": TensorProto.INT32, "s": TensorProto.INT32}
    shape = ["n", "t"]
    before = model(nodes, {"i": shape, "s": shape}, {"y": [None] * 3, "sum": [None] * 3}, weights, types=types, opsets=MS)
    ids = np.ones((2, 5), np.int32)
    context, values = holds(before, {"i": ids, "s": ids})
    assert context.dims(values["y"]) == ("n", "t", 8)


@pytest.mark.parametrize(
    "a, b, attributes, shape",
    [
        (("n", 3, 4), (4, 5), {}, ("n", 3, 5)),
        (("n", 3, 4), (5, 4), {"transB": 1}, ("n", 3, 5)),
        (("n", 4, 3), ("n", 4, 5), {"transA": 1}, ("n", 3, 5)),
        ((3, "n", 2, 4), (5, "n", 2, 4), {"transBatchA": 1, "transBatchB": 1, "transB": 1}, ("n", 2, 3, 5)),
        ((3, 2, 4), (2, 3, 5), {"transBatchA": 1, "transA": 1}, (2, 4, 5)),
    ],
)
def test_fused_matmul(a, b, attributes, shape) -> None:
    before = one("FusedMatMul", {"a": a, "b": b}, rank=len(a), **attributes)
    sizes = [tuple(6 if d == "n" else d for d in s) for s in (a, b)]
    context, values = holds(before, {"a": array(*sizes[0]), "b": array(*sizes[1])})
    assert context.dims(values["y"]) == shape


def test_conv_and_gemm() -> None:
    before = one("FusedConv", {"x": ["n", 3, 8, "w"]}, {"k": array(4, 3, 3, 3)}, rank=4, strides=[2, 1], activation="Relu")
    context, values = holds(before, {"x": array(2, 3, 8, 6)})
    assert context.dims(values["y"])[:3] == ("n", 4, 3)
    before = one("FusedGemm", {"x": ["n", 3]}, {"k": array(4, 3)}, rank=2, transB=1, activation="Relu")
    context, values = holds(before, {"x": array(2, 3)})
    assert context.dims(values["y"]) == ("n", 4)


def test_dynamically_quantized() -> None:
    weights = {"w": np.ones((4, 5), np.uint8), "s": np.float32(0.1)}
    context, values = holds(one("DynamicQuantizeMatMul", {"x": ["n", 3, 4]}, weights, rank=3), {"x": array(2, 3, 4)})
    assert context.dims(values["y"]) == ("n", 3, 5)
