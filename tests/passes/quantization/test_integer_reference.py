"""What is written, worked out in numpy from the stored integers, beside what the runtime's kernels answer."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.passes.quantization.test_forms import CASES
from tests.passes.quantization.test_quantize_static import constants, data, quantize, residual
from tests.support import array, model, node, session


def quantized(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    limits = np.iinfo(zero.dtype)
    # The quotient is one of float32, as the operator has it; all else here is wider than what the kernels compute in.
    return np.clip(np.rint(np.float32(x) / np.float32(scale)) + np.float64(zero), limits.min, limits.max).astype(zero.dtype)


def dequantized(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> np.ndarray:
    shape = [1] * q.ndim
    if scale.ndim:
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (q.astype(np.int64) - zero.astype(np.int64)) * scale.astype(np.float64)


def convolved(x: np.ndarray, w: np.ndarray, bias, strides=(1, 1), pads=(0, 0, 0, 0), group: int = 1) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    high, wide = ((x.shape[2 + i] - w.shape[2 + i]) // strides[i] + 1 for i in (0, 1))
    made = np.zeros((x.shape[0], w.shape[0], high, wide))
    each, inner = w.shape[0] // group, x.shape[1] // group
    for g, i, j in itertools.product(range(group), range(w.shape[2]), range(w.shape[3])):
        part = x[:, g * inner : (g + 1) * inner, i : i + high * strides[0] : strides[0], j : j + wide * strides[1] : strides[1]]
        made[:, g * each : (g + 1) * each] += np.einsum("nchw,oc->nohw", part, w[g * each : (g + 1) * each, :, i, j])
    return made if bias is None else made + bias[:, None, None]


def pooled(x: np.ndarray, size: int) -> np.ndarray:
    n, c, high, wide = x.shape
    return x.reshape(n, c, high // size, size, wide // size, size).max(axis=(3, 5))


def evaluate(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The only output of a model, its sums in double precision of numbers that integers stand for."""
    values: dict[str, np.ndarray | None] = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} | {"x": x, "": None}
    for n in proto.graph.node:
        given = [values[name] for name in n.input]
        a = {attribute.name: helper.get_attribute_value(attribute) for attribute in n.attribute}
        operators: dict[str, Callable[[], np.ndarray]] = {
            "QuantizeLinear": lambda g=given: quantized(*g),
            "DequantizeLinear": lambda g=given, a=a: dequantized(*g, a.get("axis", 1)),
            "Conv": lambda g=given, a=a: convolved(
                g[0], g[1], g[2] if len(g) > 2 else None, **{k: a[k] for k in ("strides", "pads", "group") if k in a}
            ),
            "Gemm": lambda g=given: g[0] @ g[1] + (g[2] if len(g) > 2 else 0),
            "Add": lambda g=given: g[0] + g[1], "Mul": lambda g=given: g[0] * g[1], "Relu": lambda g=given: np.maximum(g[0], 0),
            "Clip": lambda g=given: np.clip(g[0], g[1], g[2]), "Sigmoid": lambda g=given: 1 / (1 + np.exp(-g[0])),
            "LeakyRelu": lambda g=given, a=a: np.where(g[0] < 0, g[0] * a["alpha"], g[0]),
            "Concat": lambda g=given, a=a: np.concatenate(g, a["axis"]), "Flatten": lambda g=given: g[0].reshape(len(g[0]), -1),
            "GlobalAveragePool": lambda g=given: g[0].mean(axis=(2, 3), keepdims=True),
            "MaxPool": lambda g=given, a=a: pooled(g[0], a["kernel_shape"][0]),
            "Pad": lambda g=given: np.pad(g[0], list(zip(g[1][:4], g[1][4:])), constant_values=g[2]),
        }  # fmt: skip
        values[n.output[0]] = operators[n.op_type]()
    found = values[proto.graph.output[0].name]
    assert found is not None
    return found


KNOWN = [case for case in CASES if case not in ("pad, reflected", "nearest", "depth to space", "slice", "gather", "most")]


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("isa", ["avx512-vnni", "neon-dotprod"])
@pytest.mark.parametrize("case", KNOWN)
def test_forms(case: str, isa: str, optimize: bool) -> None:
    if isa.startswith("neon") and optimize and platform.machine() in ("x86_64", "AMD64"):
        pytest.skip("on x86 the runtime has no kernels for signed activations")
    after, _ = quantize(CASES[case][0], data(1, 4, 8, 8), isa=isa)
    agree(after, array(1, 4, 8, 8, seed=50), constants(after)["y_scale"], optimize)


@pytest.mark.parametrize("isa", ["avx512-vnni", "avx2"])
def test_a_network(isa: str) -> None:
    after, _ = quantize(residual(), data(1, 3, 8, 8), isa=isa)
    x = array(2, 3, 8, 8, seed=50)
    wanted = evaluate(after, x)
    for optimize in (False, True):
        np.testing.assert_allclose(session(after, optimize).run(None, {"x": x})[0], wanted, atol=0.03 * np.abs(wanted).max())


def agree(after: onnx.ModelProto, x: np.ndarray, step: np.ndarray, optimize: bool) -> None:
    """The answers are the same integers but for few, which lie halfway between two and are rounded either way."""
    wanted, found = evaluate(after, x), session(after, optimize).run(None, {"x": x})[0]
    away = np.rint(np.abs(found - wanted) / step)
    assert away.max() <= 1
    assert (away == 0).mean() > 0.97


# --- sums of 16 bits ------------------------------------------------------------------------------------------------


def pairwise(q: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Products of unsigned and signed bytes, added up in pairs that saturate at 16 bits, as VPMADDUBSW does."""
    products = q.astype(np.int32) * w.astype(np.int32)
    return np.clip(products[..., ::2] + products[..., 1::2], -(2**15), 2**15 - 1).sum(axis=-1)


@pytest.mark.parametrize(("isa", "exact"), [("avx2", True), ("avx512", True), ("unknown", True), ("avx512-vnni", False)])
def test_pairs_of_products_saturate_where_they_may(isa: str, exact: bool) -> None:
    """The largest weights side by side and activations at the top of their range: the worst that can come."""
    weight = np.ones((8, 4), np.float32)
    weight[:, 1], weight[:, 2] = -1, 0.5
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Exp", ["m"], ["y"])]
    after, _ = quantize(model(nodes, {"x": [1, 8]}, {"y": [1, 4]}, {"w": weight}), [np.linspace(0, 1, 8, dtype="f4")[None]] * 3, isa=isa)
    w = constants(after)["w_int8"]
    q = np.full(8, 255, np.uint8)
    wide = q.astype(np.int64) @ w.astype(np.int64)
    assert (pairwise(q, w.T) == wide).all() == exact


def test_weights_of_forms_are_reduced_too() -> None:
    for case in ("prelu, slopes on both sides", "batch normalization", "average pool", "times a vector"):
        after, _ = quantize(CASES[case][0], data(1, 4, 8, 8), isa="avx2")
        weights = [a for a in constants(after).values() if a.dtype == np.int8 and a.ndim == 4]
        assert len(weights) > 2
        assert max(int(np.abs(w.astype(int)).max()) for w in weights) <= 63
