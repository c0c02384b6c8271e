"""set-accuracy-level, and the preset int4 from file to file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.request import Request
from graphopt.run import Result, optimize
from tests.support import array, model, node, ops, reasons, run_pass, session

NAME = "set-accuracy-level"


def nbits(**attributes) -> onnx.ModelProto:
    weights = {"b": np.random.default_rng(0).integers(0, 256, (24, 3, 16), dtype=np.uint8), "s": array(24, 3, low=0.5) / 50}
    made = node("MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=96, N=24, bits=4, block_size=32, **attributes)
    return model([made], {"x": [None, 96]}, {"y": [None, 24]}, weights, opsets={"com.microsoft": 1})


def level(proto: onnx.ModelProto) -> list[int]:
    return [a.i for n in proto.graph.node for a in n.attribute if a.name == "accuracy_level"]


def test_inputs_are_rounded_by_blocks() -> None:
    """What the runtime computes is the product of integers: of the weights, and of inputs with one scale a block."""
    before = nbits()
    after, log = run_pass(before, NAME)
    assert (level(before), level(after), log.applied) == ([], [4], 1)
    x = array(3, 96)
    weight = session(before).run(None, {"x": np.eye(96, dtype=np.float32)})[0].astype(np.float64)
    blocks = x.reshape(3, 3, 32).astype(np.float64)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / 127
    rounded = (np.rint(blocks / scale) * scale).reshape(3, 96)
    found = session(after).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, rounded @ weight, rtol=2e-3, atol=2e-3)
    assert np.abs(found - x @ weight).max() > 4 * np.abs(found - rounded @ weight).max()


def test_what_a_model_says_stays() -> None:
    for said in (1, 4):
        after, log = run_pass(nbits(accuracy_level=said), NAME)
        assert (level(after), log.applied) == ([said], 0)
    assert level(run_pass(nbits(accuracy_level=0), NAME)[0]) == [4]
    assert level(run_pass(nbits(), NAME, level=1)[0]) == [1]


def test_operators_of_other_domains_are_no_match() -> None:
    before = model([node("Neg", ["x"], ["y"])], {"x": [2]}, ["y"])
    after, log = run_pass(before, NAME)
    assert (ops(after), reasons(log)) == ({"Neg": 1}, [])


# --- the preset -----------------------------------------------------------------------------------------------------


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A table, two products, and the table again as the last weight."""
    nodes = [
        node("Gather", ["t", "i"], ["e"]), node("MatMul", ["e", "w1"], ["a"]), node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "w2"], ["b"]), node("Add", ["b", "e"], ["c"]), node("Transpose", ["t"], ["u"], perm=[1, 0]),
        node("MatMul", ["c", "u"], ["y"]),
    ]  # fmt: skip
    weights = {"t": array(300, 64), "w1": array(64, 256, seed=1) / 8, "w2": array(256, 64, seed=2) / 16}
    made = model(nodes, {"i": ["batch", "tokens"]}, {"y": ["batch", "tokens", 300]}, weights, opset=18, types={"i": 7})
    onnx.save(made, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def run(path: Path, **options) -> Result:
    return optimize(Request(path, path.parent / "out.onnx", **{"preset": "int4", "bench": False, "budget": 0.3} | options))


def test_smaller_and_told(network: Path) -> None:
    result = run(network)
    report = result.report.to_dict()
    assert (result.exit_code, report["verification"]["verdict"]) == (0, "within-budget")
    written = onnx.load(report["output"])
    assert ops(written) == {"Reshape": 1, "GatherBlockQuantized": 1, "MatMulNBits": 3, "Relu": 1, "Add": 1}
    assert {o.domain: o.version for o in written.opset_import} == {"": 18, "com.microsoft": 1}
    assert level(written) == [4, 4, 4]
    assert report["after"]["bytes"] < 0.19 * report["before"]["bytes"]
    note = next(p for p in report["passes"] if p["name"] == "quantize-weights-blocked")["note"]
    assert note.startswith("4 bits in blocks of 32, with zero points, by hqq; 3 weights of products, 207,872 bytes")
    assert not any("CALIBRATED" in w for w in report["warnings"])


def test_options_reach_the_pass(network: Path) -> None:
    options = {"quantize-weights-blocked": {"bits": "8", "block-size": "64", "method": "gptq"}}
    report = run(network, options=options, budget=0.05).report.to_dict()
    assert report["verification"]["verdict"] == "within-budget"
    note = next(p for p in report["passes"] if p["name"] == "quantize-weights-blocked")["note"]
    assert note.startswith("8 bits in blocks of 64, with zero points, by gptq")
    assert report["calibration"]["tensors"] == 3
    assert any("CALIBRATED ON SYNTHESIZED SAMPLES" in w for w in report["warnings"])


def test_over_the_budget_weights_stay_in_float(network: Path) -> None:
    report = run(network, budget=1e-6).report.to_dict()
    assert report["verification"]["verdict"] in ("identical", "equivalent", "within-budget")
    assert any("quantize-weights-blocked" in w for w in report["warnings"])
    assert "MatMulNBits" not in ops(onnx.load(report["output"]))
