"""Models that come quantized: what is improved stays the same to the bit, and the preset int8 leaves them as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.measurement import Target, final_graph, integer_kernels
from graphopt.request import Request
from graphopt.rewriting import ChangeLog, Context
from graphopt.rewriting.context import Tools
from graphopt.run import optimize
from tests.passes.quantization.test_quantize_static import data, residual
from tests.support import REGISTRY, array, assert_same, drop_inferred, model, node, ops, reasons, run_pass

ISA = "avx512-vnni"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> dict[str, onnx.ModelProto]:
    """The network of the other tests, by ONNX Runtime's own quantizers."""
    pytest.importorskip("onnxruntime.quantization")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"x": x} for x in data(1, 3, 8, 8)])

        def get_next(self):
            return next(self.left, None)

    folder = tmp_path_factory.mktemp("quantized")
    onnx.save(residual(), folder / "float.onnx")
    made = {}
    for name, form, kind in (
        ("qdq", QuantFormat.QDQ, QuantType.QInt8), ("qdq-uint8", QuantFormat.QDQ, QuantType.QUInt8),
        ("operators", QuantFormat.QOperator, QuantType.QUInt8),
    ):  # fmt: skip
        quantize_static(
            str(folder / "float.onnx"), str(folder / name), Reader(), quant_format=form, activation_type=kind, per_channel=True
        )
        made[name] = onnx.load(folder / name)
    quantize_dynamic(str(folder / "float.onnx"), str(folder / "dynamic"))
    return made | {"dynamic": onnx.load(folder / "dynamic")}


def unsigned(before: onnx.ModelProto, isa: str = ISA) -> tuple[onnx.ModelProto, ChangeLog]:
    graph = ir.from_proto(before)
    log = ChangeLog("activations-to-uint8")
    REGISTRY.get(log.name).configure().run(Context(graph, log, tools=Tools(target=Target("cpu", "test", 1, isa))))
    drop_inferred(graph)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made)
    return made, log


def kernels(proto: onnx.ModelProto) -> dict[str, int]:
    return integer_kernels(final_graph(proto.SerializeToString(), threads=1))


def test_signed_activations_become_unsigned(quantized) -> None:
    before = quantized["qdq"]
    after, log = unsigned(before)
    assert log.applied == 12
    assert_same(before, after, {"x": array(2, 3, 8, 8, seed=5)}, exact=True)
    everything = {"QLinearConv": 5, "QGemm": 1, "QLinearAdd": 1, "QLinearConcat": 1, "QLinearGlobalAveragePool": 1}
    assert kernels(after) == everything == kernels(quantized["qdq-uint8"])
    assert kernels(before)["QLinearConv"] < 5  # should this fail, the runtime has learned it


@pytest.mark.parametrize("isa", ["avx2", "neon-dotprod", "unknown"])
def test_signed_activations_stay_where_they_are_right(quantized, isa: str) -> None:
    after, log = unsigned(quantized["qdq"], isa)
    assert log.applied == 0
    assert kernels(after) == kernels(quantized["qdq"])


def signed_pair(extra=(), outputs=("y",), zero: int = 3, other: int = 3) -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "o"], ["d"]), node("Neg", ["d"], ["y"]), *extra
    ]  # fmt: skip
    weights = {"s": np.float32(0.1), "z": np.int8(zero), "o": np.int8(other)}
    types = {"q": TensorProto.INT8, "c": TensorProto.FLOAT}
    return model(nodes, {"x": [4, 4]}, {name: [4, 4] for name in outputs}, weights, types=types)


@pytest.mark.parametrize("zero", [-128, 0, 127])
def test_zero_points_are_shifted(zero: int) -> None:
    before = signed_pair(zero=zero, other=zero)
    after, _ = unsigned(before)
    assert_same(before, after, {"x": 9 * array(4, 4)}, exact=True)
    kept = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    assert [int(a) for a in kept.values() if a.dtype == np.uint8] == [zero + 128]


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (signed_pair(outputs=("y", "q")), "are a graph output"),
        (signed_pair([node("Cast", ["q"], ["c"], to=1)], ("y", "c")), "also read by Cast"),
        (signed_pair(other=4), "read with another zero point"),
    ],
)
def test_integers_that_others_see_stay_signed(before: onnx.ModelProto, reason: str) -> None:
    after, log = unsigned(before)
    assert log.applied == 0
    assert any(reason in r for r in reasons(log))
    assert_same(before, after, {"x": array(4, 4)}, exact=True)


def test_constant_operands_follow() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["c", "s"], ["e"]), node("Mul", ["d", "e"], ["m"]),
        node("QuantizeLinear", ["m", "s", "z"], ["r"]), node("DequantizeLinear", ["r", "s", "z"], ["y"]),
    ]  # fmt: skip
    weights = {"s": np.float32(0.1), "z": np.int8(-5), "c": np.arange(-60, 60, 30).astype(np.int8)}
    before = model(nodes, {"x": [4, 4]}, {"y": [4, 4]}, weights)
    after, log = unsigned(before)
    assert log.applied == 3
    assert kernels(after) == {"QLinearMul": 1}
    assert_same(before, after, {"x": 9 * array(4, 4)}, exact=True)


# --- pairs that cancel --------------------------------------------------------------------------------------------


def there_and_back(scale=0.37, again=0.37, zero=3, other=3, dtype="uint8", **attributes) -> onnx.ModelProto:
    """Integers x -> DequantizeLinear -> QuantizeLinear -> Cast y."""
    nodes = [
        node("DequantizeLinear", ["x", "s", "z"], ["d"], **attributes), node("QuantizeLinear", ["d", "t", "o"], ["q"], **attributes),
        node("Cast", ["q"], ["y"], to=1),
    ]  # fmt: skip
    weights = {"s": np.asarray(scale, np.float32), "t": np.asarray(again, np.float32)}
    weights |= {"z": np.asarray(zero, dtype), "o": np.asarray(other, dtype)}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(nodes, {"x": [256, 2]}, {"y": [256, 2]}, weights, types={"x": kind})


PER_AXIS = {"scale": [0.37, 3e-5], "again": [0.37, 3e-5], "zero": [3, 250], "other": [3, 250]}


@pytest.mark.parametrize("options", [{}, {"dtype": "int8"}, {"scale": 1e-30, "again": 1e-30}, PER_AXIS, {"zero": 255, "other": 255}])
def test_there_and_back_is_nothing(options) -> None:
    before = there_and_back(**options)
    after, log = run_pass(before, "eliminate-quantize-pairs")
    assert log.applied == 1
    assert ops(after) == {"Cast": 1}
    every = np.arange(512).reshape(2, 256).T.astype(options.get("dtype", "uint8"))
    assert_same(before, after, {"x": every}, exact=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"again": 0.38}, "the scales differ"), ({"other": 4}, "the zero points differ"),
        ({"scale": 1e-40, "again": 1e-40}, "tiny or huge"), ({"scale": 2e38, "again": 2e38}, "tiny or huge"),
        ({"dtype": "uint16"}, "wider than 8 bits"),
    ],
)  # fmt: skip
def test_pairs_that_change_numbers_stay(options, reason: str) -> None:
    before = there_and_back(**options)
    if options.get("dtype") == "uint16":
        before.opset_import[0].version = 21
    after, log = run_pass(before, "eliminate-quantize-pairs")
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log))


def test_scales_that_a_caller_gives() -> None:
    nodes = [node("DequantizeLinear", ["x", "s"], ["d"]), node("QuantizeLinear", ["d", "s"], ["q"]), node("Cast", ["q"], ["y"], to=1)]
    before = model(nodes, {"x": [4], "s": []}, {"y": [4]}, types={"x": TensorProto.UINT8})
    after, log = run_pass(before, "eliminate-quantize-pairs")
    assert ops(after) == ops(before)
    assert reasons(log) == ["a scale is not constant"]


# --- weights that are rounded at each run ---------------------------------------------------------------------------


def trained(weight: np.ndarray, scale, zero, axis: int = 0) -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=axis), node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=axis),
        node("MatMul", ["x", "d"], ["y"]),
    ]  # fmt: skip
    weights = {"w": weight, "s": np.asarray(scale, np.float32), "z": zero}
    return model(nodes, {"x": [3, 6]}, {"y": [3, 8]}, weights)


@pytest.mark.parametrize(
    ("scale", "zero", "axis"),
    [
        (0.013, np.int8(0), 0), (0.02, np.uint8(131), 0), (np.linspace(0.001, 0.1, 8), np.zeros(8, np.int8), 1),
        (np.linspace(0.001, 0.1, 6), np.arange(6, dtype=np.int8), 0), (np.linspace(0.001, 0.1, 8), np.zeros(8, np.int8), -1),
    ],
)  # fmt: skip
def test_weights_are_rounded_once(scale, zero, axis: int) -> None:
    weight = array(6, 8)
    weight[0, :4] = np.float32(0.013) * np.array([0.5, 1.5, -2.5, 400], np.float32)  # halves, and more than fits
    before = trained(weight, scale, zero, axis)
    after, log = run_pass(before, "fold-quantized-weights")
    assert log.applied == 1
    assert ops(after) == {"DequantizeLinear": 1, "MatMul": 1}
    assert "w" not in [t.name for t in after.graph.initializer]
    assert_same(before, after, {"x": array(3, 6, seed=2)}, exact=True)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (trained(np.full((6, 8), np.nan, np.float32), 0.1, np.int8(0)), "not finite"),
        (trained(array(6, 8), 0.0, np.int8(0)), "zero or denormal"),
        (trained(array(6, 8), np.full(5, 0.1), np.zeros(5, np.int8)), "do not fit"),
    ],
)
def test_weights_that_are_not_folded(before: onnx.ModelProto, reason: str) -> None:
    after, log = run_pass(before, "fold-quantized-weights")
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log))


# --- from file to file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qdq", "qdq-uint8", "operators", "dynamic"])
@pytest.mark.parametrize("preset", ["default", "int8"])
def test_runs(quantized, name: str, preset: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(quantized[name], path)
    budget = {"budget": 0.1} if preset == "int8" else {}
    report = optimize(Request(path, tmp_path / "out.onnx", preset=preset, bench=False, **budget)).report.to_dict()
    assert report["verification"]["verdict"] in ("identical", "equivalent")
    before, after = kernels(quantized[name]), kernels(onnx.load(report["output"]))
    assert all(after[kernel] >= count for kernel, count in before.items())
    if preset == "int8":
        note = next(p for p in report["passes"] if p["name"] == "quantize-static")["note"]
        assert note.startswith("the model is quantized already")
