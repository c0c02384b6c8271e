"""The preset int8-dynamic from file to file: weights that exporters transpose, what the report says, what stays in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.measurement import FinalGraph, final_graph, integer_kernels, on_integers
from graphopt.request import Request
from graphopt.run import Result, optimize
from tests.support import array, model, node, ops, session


def run(path: Path, **options) -> Result:
    return optimize(Request(path, path.parent / "out.onnx", preset="int8-dynamic", threads=1, **{"bench": False} | options))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Four products, as exporters write them: behind a Transpose, with a Reshape, by a Gemm, and of two computed values."""
    weights = {f"w{i}": array(256, 256, seed=i) / 16 for i in range(4)} | {"b": array(256, seed=9), "s": [256, 256]}
    nodes = [
        node("Transpose", ["w0"], ["t0"], perm=[1, 0]), node("MatMul", ["x", "t0"], ["q"]),
        node("Reshape", ["w1", "s"], ["t1"]), node("MatMul", ["x", "t1"], ["k"]),
        node("Transpose", ["k"], ["kt"], perm=[1, 0]), node("MatMul", ["q", "kt"], ["a"]), node("Softmax", ["a"], ["p"]),
        node("Gemm", ["x", "w2", "b"], ["v"], transB=1), node("MatMul", ["p", "v"], ["o"]),
        node("MatMul", ["o", "w3"], ["m"]), node("Add", ["b", "m"], ["y"]),
    ]  # fmt: skip
    onnx.save(model(nodes, {"x": ["n", 256]}, {"y": ["n", 256]}, weights), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_all_products_run_on_integers(encoder: Path) -> None:
    result = run(encoder)
    report = result.report.to_dict()
    assert result.exit_code == 0
    assert report["verification"]["verdict"] == "within-budget"
    assert sum(integer_kernels(final_graph(report["output"], threads=1)).values()) == 4
    assert report["after"]["bytes"] < 0.3 * report["before"]["bytes"]
    record = next(p for p in report["passes"] if p["name"] == "quantize-dynamic")
    assert record["applied"] == 4
    assert "2 products of two computed values stay in float" in record["note"]
    told = next(n for n in report["notes"] if "runs on integers" in n)
    assert "3 MatMulIntegerToFloat, 1 DynamicQuantizeMatMul; 1 DynamicQuantizeLinear convert" in told


def test_no_samples_are_needed(encoder: Path) -> None:
    report = run(encoder).report.to_dict()
    assert report["calibration"] is None
    assert not any("CALIBRATED" in w for w in report["warnings"])
    assert "smooth-activations" not in [p["name"] for p in report["passes"]]


def test_samples_help(tmp_path: Path) -> None:
    """Channels that stick out are brought down before inputs are rounded: the result is nearer to the model."""
    before = model([node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 256]}, {"y": ["n", 256]}, {"w": array(256, 256) / 16})
    onnx.save(before, tmp_path / "m.onnx")
    scale = np.where(np.arange(256) % 50 == 0, 60.0, 1.0).astype(np.float32)
    (tmp_path / "data").mkdir()
    for i in range(10):
        np.save(tmp_path / "data" / f"{i}.npy", array(8, 256, seed=20 + i) * scale)
    x = {"x": array(8, 256, seed=99) * scale}
    expected = session(before).run(None, x)[0]

    def distance(**options) -> float:
        report = run(tmp_path / "m.onnx", budget=1.0, **options).report.to_dict()
        assert "MatMulInteger" in ops(onnx.load(report["output"]))
        return float(np.linalg.norm(session(onnx.load(report["output"])).run(None, x)[0] - expected) / np.linalg.norm(expected))

    assert distance(calibration=str(tmp_path / "data")) < 0.7 * distance()


def test_it_is_left_out_on_other_providers() -> None:
    from graphopt.pipeline.presets import build_pipeline
    from tests.support import REGISTRY

    assert "quantize-dynamic" not in [s.name for s in build_pipeline(REGISTRY, preset="int8-dynamic", provider="cuda").steps]


def test_nothing_to_quantize(tmp_path: Path) -> None:
    onnx.save(model([node("Conv", ["x", "w"], ["y"])], {"x": [1, 3, 8, 8]}, {"y": None}, {"w": array(4, 3, 3, 3)}), tmp_path / "m.onnx")
    result = run(tmp_path / "m.onnx")
    record = next(p for p in result.report.to_dict()["passes"] if p["name"] == "quantize-dynamic")
    assert "nothing to quantize" in record["note"]
    assert "several times slower" in record["refused"][0]["reason"]
    assert result.exit_code == 0
    assert ops(onnx.load(tmp_path / "out.onnx")) == {"Conv": 1}


@pytest.mark.slow
def test_what_it_gains_is_measured(tmp_path: Path) -> None:
    weights = {"w": array(1024, 1024) / 32, "v": array(1024, 1024, seed=1) / 32}
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    onnx.save(model(nodes, {"x": [64, 1024]}, {"y": None}, weights), tmp_path / "m.onnx")
    report = run(tmp_path / "m.onnx", bench=True).report.to_dict()
    choice = next(c for c in report["choices"] if c["pass"] == "quantize-dynamic")
    kept = choice["decision"] == "kept"
    assert kept == ("MatMulInteger" in ops(onnx.load(report["output"])))
    assert kept == (choice["ratio"] > 1)


def test_words_on_a_graph() -> None:
    found = {"com.microsoft::DynamicQuantizeLSTM": 2, "DynamicQuantizeLinear": 1, "MatMulInteger": 1, "Cast": 1}
    assert on_integers(FinalGraph(b"", found)) == (
        "the runtime runs on integers: 2 DynamicQuantizeLSTM, 1 MatMulInteger; 1 DynamicQuantizeLinear convert between these and float "
        "operators; it scales the sums of 1 MatMulInteger in operators of their own, which is slower"
    )
    assert "runs nothing on integers: it keeps 1 QuantizeLinear, 2 DequantizeLinear and 3 DynamicQuantizeLinear" in on_integers(
        FinalGraph(b"", {"QuantizeLinear": 1, "DequantizeLinear": 2, "DynamicQuantizeLinear": 3})
    )
