"""The preset int8 from file to file: what is written, what the report says, and what stays in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.measurement import FinalGraph, final_graph, integer_kernels, on_integers
from graphopt.request import Request
from graphopt.run import Result, optimize
from tests.passes.quantization.test_quantize_static import data, residual
from tests.support import array, model, node, ops


def run(path: Path, **options) -> Result:
    return optimize(Request(path, path.parent / "out.onnx", preset="int8", **{"bench": False, "budget": 0.2} | options))


@pytest.fixture
def network(tmp_path: Path) -> Path:
    onnx.save(residual(), tmp_path / "m.onnx")
    (tmp_path / "data").mkdir()
    for number, sample in enumerate(data(1, 3, 8, 8, count=20)):
        np.save(tmp_path / "data" / f"{number:02}.npy", sample)
    return tmp_path / "m.onnx"


def test_calibrated_verified_and_told(network: Path) -> None:
    result = run(network, calibration=str(network.parent / "data"))
    report = result.report.to_dict()
    assert result.exit_code == 0
    assert report["verification"]["verdict"] == "within-budget"
    assert report["verification"]["samples"] == 4
    assert report["after"]["bytes"] < 1.1 * report["before"]["bytes"]  # biases where there were none weigh much in so small a model
    kernels = integer_kernels(final_graph(report["output"], threads=1))
    assert kernels == {"QLinearConv": 5, "QGemm": 1, "QLinearAdd": 1, "QLinearConcat": 1, "QLinearGlobalAveragePool": 1}
    told = next(n for n in report["notes"] if "runs on integers" in n)
    assert "5 QLinearConv, 1 QGemm, 1 QLinearAdd" in told
    assert "1 QuantizeLinear" in told
    assert any("calibrated on 16 samples" in n for n in report["notes"])
    assert next(p for p in report["passes"] if p["name"] == "quantize-static")["note"].startswith("6 products on integers")


def test_over_the_budget_the_products_at_fault_stay_in_float(network: Path) -> None:
    result = run(network, calibration=str(network.parent / "data"), budget=1e-7)
    report = result.report.to_dict()
    assert report["verification"]["verdict"] in ("identical", "equivalent", "within-budget")
    assert any("went back to float to keep the budget" in n for n in report["notes"])
    assert "QuantizeLinear" not in ops(onnx.load(report["output"]))


def test_nothing_to_quantize(tmp_path: Path) -> None:
    onnx.save(model([node("Exp", ["x"], ["e"]), node("Neg", ["e"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}), tmp_path / "m.onnx")
    report = run(tmp_path / "m.onnx").report.to_dict()
    note = next(p for p in report["passes"] if p["name"] == "quantize-static")["note"]
    assert "nothing to quantize" in note
    assert report["calibration"]["tensors"] == 0
    assert not any("calibrated on" in n for n in report["notes"])


def test_float_operators_between_are_named(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Elu", ["c"], ["e"]), node("Conv", ["e", "v"], ["d"]), node("Exp", ["d"], ["y"])]
    weights = {"w": array(8, 4, 3, 3) / 8, "v": array(8, 8, 1, 1, seed=1) / 8}
    onnx.save(model(nodes, {"x": [1, 4, 6, 6]}, {"y": None}, weights), tmp_path / "m.onnx")
    report = run(tmp_path / "m.onnx", budget=1.0).report.to_dict()
    note = next(p for p in report["passes"] if p["name"] == "quantize-static")["note"]
    assert note.endswith("float operators that values are converted for: 1 Elu, 1 Exp")
    assert any("2 QuantizeLinear and 2 DequantizeLinear convert between" in n for n in report["notes"])


def test_words_on_a_graph() -> None:
    assert "runs nothing on integers: it keeps 2 DequantizeLinear" in on_integers(FinalGraph(b"", {"Conv": 1, "DequantizeLinear": 2}))
    assert "keeps no conversion either" in on_integers(FinalGraph(b"", {"Conv": 1}))
    assert on_integers(FinalGraph(b"", {"MatMulIntegerToFloat": 3})) == "the runtime runs on integers: 3 MatMulIntegerToFloat"
