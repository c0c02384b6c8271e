"""Quantization operators through the importer, against ONNX Runtime: equal to the last integer."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from graphopt.errors import InputError
from tests.support import array, model, node, rng

torch = pytest.importorskip("torch")

from tests.importing.against_runtime import check, check_exported, imported  # noqa: E402

_NARROW = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "uint16": TensorProto.UINT16, "int16": TensorProto.INT16}


def _integers(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng(seed).integers(limits.min, limits.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", sorted(_NARROW))
@pytest.mark.parametrize("granularity", ["tensor", "axis", "block"])
def test_quantized_and_back(dtype: str, granularity: str) -> None:
    shape = {"tensor": (), "axis": (6,), "block": (3, 2)}[granularity]
    scale = array(*shape, low=0.01, seed=1)
    zero = _integers(dtype, *shape, seed=2)
    attributes = {"tensor": {}, "axis": {"axis": -1}, "block": {"axis": 1, "block_size": 3}}[granularity]
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    made = model(
        nodes, {"x": [3, 6]}, {"q": [3, 6], "y": [3, 6]}, {"s": scale, "z": zero}, opset=21, ir_version=10, types={"q": _NARROW[dtype]}
    )
    check(made, {"x": array(3, 6) * 1e4}, {"x": array(3, 6) * 100}, {"x": array(3, 6)})


def test_halves_go_to_the_even_neighbour() -> None:
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"])]
    made = model(nodes, {"x": ["N"]}, {"q": ["N"]}, {"s": np.float32(2), "z": np.int8(1)}, types={"q": TensorProto.INT8})
    check(made, {"x": np.array([-5, -3, -1, 1, 3, 5, 7, 1e9, -1e9, np.inf, -np.inf], np.float32)})


def test_dynamic_quantization() -> None:
    types = {"q": TensorProto.UINT8, "z": TensorProto.UINT8}
    made = model([node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])], {"x": ["N", 5]}, {"q": ["N", 5], "s": [], "z": []}, types=types)
    x = array(4, 5)
    check(made, {"x": x}, {"x": np.abs(x)}, {"x": -np.abs(x)}, {"x": np.zeros((2, 5), np.float32)})


@pytest.mark.parametrize("a_type", ["uint8", "int8"])
@pytest.mark.parametrize("zeros", ["none", "tensor", "column"])
def test_products_of_integer_matrices(a_type: str, zeros: str) -> None:
    b = _integers("int8", 40, 6, seed=3)
    initializers = {"b": b}
    names = ["a", "b"]
    if zeros != "none":
        initializers |= {"az": _integers(a_type, seed=4), "bz": _integers("int8", *([6] if zeros == "column" else []), seed=5)}
        names += ["az", "bz"]
    made = model(
        [node("MatMulInteger", names, ["y"])],
        {"a": ["N", 40]},
        {"y": ["N", 6]},
        initializers,
        types={"a": _NARROW[a_type], "y": TensorProto.INT32},
    )
    check(made, {"a": _integers(a_type, 3, 40)}, {"a": _integers(a_type, 5, 40)})


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 2, 0, 1]])
def test_convolutions_of_integers(group: int, pads: list[int]) -> None:
    w = _integers("int8", 4, 4 // group, 3, 3, seed=6)
    made = model(
        [node("ConvInteger", ["x", "w", "xz", "wz"], ["y"], group=group, pads=pads, strides=[2, 1])], {"x": ["N", 4, 7, 8]}, {"y": None},
        {"w": w, "xz": np.uint8(120), "wz": np.int8(0)}, types={"x": TensorProto.UINT8, "y": TensorProto.INT32},
    )  # fmt: skip
    check(made, {"x": _integers("uint8", 2, 4, 7, 8)})


@pytest.mark.parametrize("bias", [False, True])
def test_quantized_convolution(bias: bool) -> None:
    initializers = {
        "xs": np.float32(0.02), "xz": np.uint8(128), "w": _integers("int8", 4, 3, 3, 3, seed=7), "ws": array(4, low=0.01, seed=8) * 0.01,
        "wz": np.zeros(4, np.int8), "ys": np.float32(0.5), "yz": np.uint8(100),
    }  # fmt: skip
    names = ["x", *initializers]
    if bias:
        initializers["b"] = rng(9).integers(-5000, 5000, 4).astype(np.int32)
        names.append("b")
    made = model(
        [node("QLinearConv", names, ["y"], pads=[1, 1, 1, 1])], {"x": ["N", 3, 6, 6]}, {"y": None}, initializers,
        types={"x": TensorProto.UINT8, "y": TensorProto.UINT8},
    )  # fmt: skip
    check(made, {"x": _integers("uint8", 2, 3, 6, 6)})


def test_quantized_product() -> None:
    initializers = {
        "as": np.float32(0.02), "az": np.uint8(128), "b": _integers("uint8", 30, 5, seed=7), "bs": np.float32(0.013), "bz": np.uint8(110),
        "ys": np.float32(0.5), "yz": np.uint8(100),
    }  # fmt: skip
    made = model(
        [node("QLinearMatMul", ["a", *initializers], ["y"])], {"a": ["N", 30]}, {"y": ["N", 5]}, initializers,
        types={"a": TensorProto.UINT8, "y": TensorProto.UINT8},
    )  # fmt: skip
    check(made, {"a": _integers("uint8", 8, 30)})


def test_exported_with_a_dynamic_batch() -> None:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "w", "z"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "s"], ["y"]),
    ]
    made = model(nodes, {"x": ["N", 8]}, {"y": ["N", 3]}, {"w": _integers("int8", 8, 3)})
    check_exported(made, {"x": array(3, 8)}, ({0: torch.export.Dim("n", min=2, max=64)},), {"x": array(6, 8, seed=1)})


def test_quantizing_to_a_type_that_torch_lacks_is_refused() -> None:
    made = model(
        [node("QuantizeLinear", ["x", "s"], ["y"], output_dtype=TensorProto.INT4)], {"x": [4]}, {"y": [4]}, {"s": np.float32(1)}, opset=21,
        ir_version=10, types={"y": TensorProto.INT4},
    )  # fmt: skip
    with pytest.raises(InputError, match="no data type for int4"):
        imported(made)


def test_scales_of_half_precision() -> None:
    nodes = [node("DequantizeLinear", ["x", "s", "z"], ["y"])]
    made = model(
        nodes, {"x": [64]}, {"y": [64]}, {"s": np.float16(0.037), "z": np.int8(-7)}, opset=21, ir_version=10,
        types={"x": TensorProto.INT8, "y": TensorProto.FLOAT16},
    )  # fmt: skip
    check(made, {"x": _integers("int8", 64)}, rtol=1e-3)
