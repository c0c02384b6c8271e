"""The preset float16 from file to file: on a CPU it ends with the float32 model and says why; on a GPU it stays."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from graphopt import runtime
from graphopt.pipeline.presets import build_pipeline
from graphopt.request import Request
from graphopt.run import Result, Run, optimize
from tests.passes.quantization.test_convert_float16 import network
from tests.support import REGISTRY, array, model, node, ops


def run(path: Path, **options) -> Result:
    return optimize(Request(path, path.parent / "out.onnx", threads=1, **{"preset": "float16", "bench": False} | options))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def record(result: Result) -> dict:
    return next(p for p in result.report.to_dict()["passes"] if p["name"] == "convert-float16")


def test_unmeasured_on_a_cpu_it_is_left_out(path: Path) -> None:
    result = run(path)
    assert result.exit_code == 0
    assert record(result)["note"] == "left out: it pays only on some targets, and nothing was measured"
    assert result.report.to_dict()["verification"]["verdict"] in ("identical", "equivalent")
    assert "Cast" not in ops(onnx.load(path.parent / "out.onnx"))


@pytest.mark.parametrize(("provider", "left_out"), [("cpu", True), ("CPUExecutionProvider", True), ("cuda", False), ("tensorrt", False)])
def test_unmeasured_on_a_gpu_it_is_kept(path: Path, provider: str, left_out: bool) -> None:
    request = Request(path, preset="float16", bench=False, provider=provider)
    job = Run(request, build_pipeline(REGISTRY, preset="float16", provider=runtime.short_name(provider)), [], None)  # type: ignore[arg-type]
    job.bench = type("Bench", (), {"samples": [1]})()
    job._unmeasured()
    assert ("convert-float16" in job.found.left_out) == left_out


def test_asked_for_by_name_it_is_done(path: Path) -> None:
    result = run(path, passes=("convert-float16",), preset="default")
    assert result.exit_code == 0
    assert record(result)["applied"] == 5
    assert result.report.to_dict()["verification"]["verdict"] == "within-budget"
    assert ops(onnx.load(path.parent / "out.onnx"))["Cast"] == 2
    assert any("CALIBRATED ON SYNTHESIZED SAMPLES" in w for w in result.report.to_dict()["warnings"])


@pytest.mark.slow
def test_measured_on_a_cpu_it_is_undone(tmp_path: Path) -> None:
    weights = {f"w{i}": array(512, 512, seed=i) / 16 for i in range(2)}
    nodes = [node("MatMul", ["x", "w0"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w1"], ["y"])]
    onnx.save(model(nodes, {"x": [64, 512]}, {"y": None}, weights), tmp_path / "m.onnx")
    result = run(tmp_path / "m.onnx", bench=True)
    assert result.exit_code == 0
    assert record(result)["note"].startswith("undone: ")
    assert "Cast" not in ops(onnx.load(tmp_path / "out.onnx"))


def test_the_runtime_tells_its_kernels() -> None:
    assert runtime.has_kernel("cpu", "", "MatMul", 17, "float")
    assert runtime.has_kernel("cpu", "ai.onnx", "LayerNormalization", 17, "float16")
    assert not runtime.has_kernel("cpu", "", "MatMul", 17, "bfloat16")
    assert not runtime.has_kernel("cpu", "", "LayerNormalization", 1, "int8")

