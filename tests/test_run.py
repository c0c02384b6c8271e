"""Runs from file to file: verdicts, what is rolled back and why, what is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.errors import InputError, OptionError, OutputError
from graphopt.request import Request
from graphopt.run import Result, optimize
from tests.pipeline import faulty
from tests.support import array, assert_same, model, node, ops

FAULTY = (str(Path(faulty.__file__)),)


@pytest.fixture(autouse=True)
def in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.steering.neverslower._SECONDS", 5.0)


@pytest.fixture
def conv_bn(tmp_path: Path) -> Path:
    weights = {"w": array(8, 3, 3, 3), "s": array(8, low=0.5), "b": array(8, seed=1), "m": array(8, seed=2), "v": array(8, seed=3, low=0.5)}
    proto = model(
        [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]), node("Identity", ["n"], ["i"]),
         node("Relu", ["i"], ["r"]), node("GlobalAveragePool", ["r"], ["y"])],
        {"x": ["batch", 3, "height", 16]}, {"y": ["batch", 8, 1, 1]}, weights,
    )
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def negs(tmp_path: Path) -> Path:
    names = ["a", "b", "bad", "c", "d", "e"]
    nodes = [node("Neg", [f"v{i}"], [f"v{i + 1}"], name=name) for i, name in enumerate(names)] + [node("Abs", ["v6"], ["y"])]
    path = tmp_path / "negs.onnx"
    onnx.save(model([node("Add", ["x", "k"], ["v0"]), *nodes], {"x": ["n", 5]}, {"y": ["n", 5]}, {"k": array(5)}), path)
    return path


def run(path: Path, **kwargs) -> Result:
    kwargs.setdefault("bench", False)
    kwargs.setdefault("tune", False)
    return optimize(Request(path, path.parent / "out.onnx", **kwargs))


def passes(result: Result) -> dict[str, dict]:
    return {p["name"]: p for p in result.report.to_dict()["passes"]}


def test_a_model_becomes_smaller_and_verifies(conv_bn: Path) -> None:
    result = run(conv_bn)
    report = result.report.to_dict()
    assert result.exit_code == 0
    assert report["verification"]["verdict"] == "equivalent"
    assert len({json.dumps(s, sort_keys=True) for s in report["verification"]["sizes"]}) >= 2
    assert (report["before"]["nodes"], report["after"]["nodes"]) == (5, 3)
    assert passes(result)["fuse-conv-bn"]["applied"] == 1
    after = onnx.load(report["output"])
    assert ops(after) == {"Conv": 1, "Relu": 1, "GlobalAveragePool": 1}
    assert_same(onnx.load(conv_bn), after, {"x": array(2, 3, 9, 16)})
    fused = next(p for p in report["provenance"] if "fuse-conv-bn" in p["passes"])
    assert {"c", "n"} <= set(fused["from"])


def test_the_clean_preset_is_identical(conv_bn: Path) -> None:
    result = run(conv_bn, preset="clean")
    assert result.report.to_dict()["verification"]["verdict"] == "identical"
    assert result.report.after["nodes"] == 4


def test_speed_is_a_ratio_with_its_spread(conv_bn: Path) -> None:
    speed = run(conv_bn, bench=True).report.to_dict()["speed"]
    assert speed["low"] <= speed["ratio"] <= speed["high"]
    assert speed["pairs"] >= 3
    assert speed["before_ms"] > 0


def test_the_default_output_stands_beside_the_model(conv_bn: Path) -> None:
    result = optimize(Request(conv_bn, verify="off", bench=False))
    assert result.report.output == str(conv_bn.with_name("model.opt.onnx"))
    assert Path(result.report.output).exists()


def test_the_input_is_replaced_only_in_place(conv_bn: Path) -> None:
    before = conv_bn.read_bytes()
    with pytest.raises(OutputError, match="in-place"):
        optimize(Request(conv_bn, conv_bn))
    assert conv_bn.read_bytes() == before
    optimize(Request(conv_bn, in_place=True, bench=False))
    assert len(onnx.load(conv_bn).graph.node) == 3


@pytest.mark.parametrize("verify", ["end", "each"])
def test_a_wrong_application_is_rolled_back_alone(negs: Path, verify: str) -> None:
    result = run(negs, plugins=FAULTY, passes=("eliminate-identity", "neg-to-relu"), verify=verify)
    report = result.report.to_dict()
    assert result.exit_code == 0
    assert report["verification"]["verdict"] in ("identical", "equivalent")
    assert ops(onnx.load(report["output"])) == {"Add": 1, "Mul": 5, "Neg": 1, "Abs": 1}
    assert any("neg-to-relu at bad was rolled back" in w for w in report["warnings"])
    assert "bad" in passes(result)["neg-to-relu"]["note"]
    assert passes(result)["neg-to-relu"]["applied"] == 5


def test_the_reproducer_shows_the_fault(negs: Path) -> None:
    run(negs, plugins=FAULTY, passes=("neg-to-relu",))
    folder = negs.parent / "out.onnx.fault-neg-to-relu"
    told = json.loads((folder / "fault.json").read_text())
    assert told["node"] == "bad"
    cut = onnx.load(folder / "model.onnx")
    assert len(cut.graph.node) < 8
    assert "bad" in [n.name for n in cut.graph.node]
    again = optimize(Request(folder / "model.onnx", plugins=FAULTY, passes=("neg-to-relu",), samples=folder / "inputs.npz", bench=False))
    assert any("neg-to-relu at bad was rolled back" in w for w in again.report.warnings)


def test_a_pass_that_raises_is_reported_and_the_run_goes_on(negs: Path) -> None:
    result = run(negs, plugins=FAULTY, passes=("raise-halfway", "eliminate-identity"))
    assert result.exit_code == 0
    record = passes(result)["raise-halfway"]
    assert record["status"] == "failed"
    assert "half of the work" in record["note"]
    assert_same(onnx.load(negs), onnx.load(result.report.output), {"x": array(3, 5)}, exact=True)


def test_what_makes_the_model_slower_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "sigmoid.onnx"
    onnx.save(model([node("Identity", ["x"], ["i"]), node("Sigmoid", ["i"], ["y"])], {"x": [64, 4096]}, ["y"]), path)
    result = run(path, plugins=FAULTY, passes=("eliminate-identity", "slow-down"), bench=True)
    report = result.report.to_dict()
    assert passes(result)["slow-down"]["status"] == "rolled-back"
    assert "slower" in passes(result)["slow-down"]["note"]
    assert passes(result)["eliminate-identity"]["status"] == "kept"
    assert ops(onnx.load(report["output"])) == {"Sigmoid": 1}
    assert report["speed"]["high"] > 0.97


def test_what_cannot_be_run_is_never_called_verified(tmp_path: Path) -> None:
    path = tmp_path / "custom.onnx"
    call = onnx.helper.make_node("Mystery", ["x"], ["m"], domain="my.domain")
    proto = model([call, node("Identity", ["m"], ["i"]), node("Relu", ["i"], ["y"])], {"x": [3]}, {"y": [3]}, opsets={"my.domain": 1})
    onnx.save(proto, path)
    result = run(path)
    report = result.report.to_dict()
    assert result.exit_code == 1
    assert report["verification"]["verdict"] == "unverified"
    assert any("Mystery" in w for w in report["warnings"])
    assert ops(onnx.load(report["output"])) == {"Mystery": 1, "Relu": 1}


def test_samples_of_the_user(conv_bn: Path) -> None:
    good, bad = conv_bn.parent / "good.npz", conv_bn.parent / "bad.npz"
    np.savez(good, x=array(2, 3, 9, 16), label=np.asarray([1, 2]))
    np.savez(bad, x=array(2, 4, 9, 16))
    assert run(conv_bn, samples=good).report.verification["samples"] == 1
    with pytest.raises(InputError, match=r"bad\.npz.*'x'"):
        run(conv_bn, samples=bad)


def test_quality_by_the_users_metric(conv_bn: Path) -> None:
    metric = conv_bn.parent / "metric.py"
    metric.write_text("import numpy as np\ndef mean(run):\n    return float(run({'x': np.ones((1, 3, 9, 16), np.float32)})['y'].mean())\n")
    quality = run(conv_bn, metric=f"{metric}:mean").report.to_dict()["quality"]
    assert quality["before"] == pytest.approx(quality["after"], rel=1e-5)
    with pytest.raises(OptionError, match="no function"):
        run(conv_bn, metric=f"{metric}:median")


def test_fixed_shapes(conv_bn: Path) -> None:
    report = run(conv_bn, shapes={"x": (1, 3, 32, 16)}).report.to_dict()
    assert report["model"]["inputs"][0]["shape"] == [1, 3, 32, 16]
    assert report["verification"]["verdict"] == "equivalent"


def test_lossy_weights_stay_within_a_budget(conv_bn: Path) -> None:
    report = run(conv_bn, preset="weights-int8", options={"quantize-weights": {"min-elements": "1"}}).report.to_dict()
    assert report["verification"]["verdict"] == "within-budget"
    assert report["after"]["operators"]["DequantizeLinear"] == 1


def test_nothing_is_left_behind(conv_bn: Path) -> None:
    run(conv_bn, bench=True)
    assert sorted(p.name for p in conv_bn.parent.iterdir()) == ["model.onnx", "out.onnx"]


def test_module_entry_point(conv_bn: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "graphopt", "run", str(conv_bn), "-o", str(conv_bn.parent / "o.onnx"), "--json", "--no-bench"],
        capture_output=True, text=True, check=True, timeout=120,
    )
    assert json.loads(done.stdout)["verification"]["verdict"] == "equivalent"


def test_passes_for_torch_programs_alone(conv_bn: Path, tmp_path: Path) -> None:
    report = optimize(Request(conv_bn, output=tmp_path / "o.onnx", bench=False, verify="off")).report
    assert "fuse-scaled-dot-product-attention" not in [p.name for p in report.passes]
    with pytest.raises(OptionError, match="works on torch programs alone"):
        optimize(Request(conv_bn, output=tmp_path / "o.onnx", passes=("fuse-scaled-dot-product-attention",)))
