"""How a pass comes by its statistics: in a run, in a replay, in a bisection; and what becomes of bad samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.calibration import Calibration, service
from graphopt.cli.entry import invoke
from graphopt.errors import CalibrationError, InputError, OptionError
from graphopt.formats import load_model
from graphopt.pipeline.bisect import without_culprits
from graphopt.pipeline.presets import Pipeline
from graphopt.pipeline.runner import Hold, run_pipeline
from graphopt.request import Request
from graphopt.rewriting.context import Tools
from graphopt.run import Result, optimize
from tests.calibration import clipping
from tests.support import array, model, node, ops

PLUGIN = (str(Path(clipping.__file__)),)


@pytest.fixture
def relus(tmp_path: Path) -> Path:
    nodes, last = [], "x"
    for i in range(4):
        nodes += [node("MatMul", [last, f"w{i}"], [f"m{i}"]), node("Relu", [f"m{i}"], [f"r{i}"])]
        last = f"r{i}"
    weights = {f"w{i}": array(8, 8, seed=i) / np.float32(2) for i in range(4)}
    onnx.save(model([*nodes, node("Neg", [last], ["y"])], {"x": ["n", 8]}, {"y": ["n", 8]}, weights), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(10):
        np.savez(folder / f"{i}.npz", x=array(5, 8, seed=100 + i))
    return folder


def run(path: Path, **kwargs) -> Result:
    kwargs = {"bench": False, "passes": ("clip-to-seen",), "plugins": PLUGIN, "budget": 0.5} | kwargs
    return optimize(Request(path, path.parent / "out.onnx", **kwargs))


def test_a_pass_calibrates_on_one_part_and_is_verified_on_the_other(relus: Path, data: Path) -> None:
    result = run(relus, calibration=str(data))
    report = result.report.to_dict()
    assert result.exit_code == 0
    assert ops(onnx.load(report["output"]))["Clip"] == 4
    assert {k: report["calibration"][k] for k in ("samples", "evaluation", "seed", "synthesized", "tensors")} == {
        "samples": 8, "evaluation": 2, "seed": 0, "synthesized": False, "tensors": 4,
    }  # fmt: skip
    assert report["verification"]["samples"] == 2
    assert any("calibrated on 8 samples of" in n and "2 others are set aside" in n for n in report["notes"])
    source = load_model(relus)
    kept = Calibration.open(str(data), source.graph).source
    highest = kept_high(source.graph, kept)
    limits = [onnx.numpy_helper.to_array(t) for t in onnx.load(report["output"]).graph.initializer if t.name.startswith("limit")]
    assert highest in [float(v) for v in limits]


def kept_high(graph, source) -> float:
    """The greatest value of the first Relu over the samples of a source, by numpy."""
    weight = graph.graph.initializers["w0"].const_value.numpy()
    return float(max(np.maximum(s.feeds["x"] @ weight, 0).max() for s in source))


def test_the_same_request_gives_the_same_bytes(relus: Path, data: Path) -> None:
    results = [Path(run(relus, calibration=str(data), seed=s).report.output).read_bytes() for s in (1, 1, 2)]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_own_samples_are_what_is_verified_on(relus: Path, data: Path) -> None:
    report = run(relus, calibration=str(data), samples=data).report.to_dict()
    assert report["verification"]["samples"] == 10


def test_without_samples_it_says_so_loudly(relus: Path) -> None:
    result = run(relus)
    assert any("CALIBRATED ON SYNTHESIZED SAMPLES" in w for w in result.report.warnings)
    assert result.report.to_dict()["calibration"]["synthesized"] is True
    one = run(relus, verify="off")
    assert any("CALIBRATED" in w for w in one.report.warnings)


def test_a_bisection_calibrates_once(relus: Path, data: Path, monkeypatch) -> None:
    calls = []
    original = service.calibrate
    monkeypatch.setattr(service, "calibrate", lambda *a, **k: calls.append(a[1]) or original(*a, **k))
    source = load_model(relus)
    tools = Tools(calibration=Calibration.open(str(data), source.graph))
    pipeline = Pipeline.of("test", [clipping.ClipToSeen()])

    def build(hold: Hold):
        return run_pipeline(source.fresh, pipeline, hold=hold, tools=tools)

    def test(candidate) -> str | None:
        clips = [n.outputs[0].name for n in candidate.model.graph.graph if n.op_type == "Clip"]
        return "bad" if "r2" in clips else None

    failing = build(Hold())
    search = without_culprits(build, test, failing, "bad")
    assert [c.label for c in search.culprits] == ["r2"]
    assert search.trials > 3
    assert calls == [["r0", "r1", "r2", "r3"]]
    assert [n.op_type for n in search.candidate.model.graph.graph].count("Clip") == 3


def test_another_graph_is_calibrated_anew(relus: Path, data: Path) -> None:
    source = load_model(relus)
    calibration = Calibration.open(str(data), source.graph)
    one = calibration.statistics(source.graph, ["r0"])["r0"]
    assert calibration.statistics(source.fresh().graph, ["r0"])["r0"] is one
    value = source.graph.graph.initializers["w0"]
    value.const_value = ir.Tensor(value.const_value.numpy() * 2, name="w0")
    assert calibration.statistics(source.graph, ["r0"])["r0"].high == pytest.approx(2 * one.high, rel=1e-5)


def test_bad_samples_are_no_fault_of_the_pass(relus: Path, data: Path) -> None:
    np.savez(data / "5.npz", x=array(5, 7))
    with pytest.raises(CalibrationError, match=r"5.npz: input 'x': expected 8 in dimension 1"):
        run(relus, calibration=str(data))
    assert not (relus.parent / "out.onnx").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": "none"}, CalibrationError, "none: no such calibration file or folder"),
        ({"calibration": "no.such:thing"}, OptionError, "cannot be imported"),
        ({"calibration": "DATA", "passes": None}, OptionError, r"none of the passes of the pipeline \(default\) uses"),
        ({"preprocess": "scale=1"}, OptionError, "none is given"),
        ({"calibration": "EMPTY"}, CalibrationError, "no .npz, .npy or image file"),
    ],
)
def test_requests_that_make_no_sense(relus: Path, data: Path, tmp_path: Path, options, error, message: str) -> None:
    (tmp_path / "empty").mkdir()
    where = {"DATA": str(data), "EMPTY": str(tmp_path / "empty")}
    options = {k: where.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(error, match=message):
        run(relus, **options)
    assert not (relus.parent / "out.onnx").exists()


def test_a_model_for_which_nothing_can_be_made_up(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "s"], ["h"]), node("Relu", ["h"], ["r"]), node("Sub", ["r", "k"], ["y"])]
    proto = model(nodes, {"x": ["n"], "s": [1]}, {"y": ["m"]}, {"k": array(997)}, types={"s": onnx.TensorProto.INT64})
    onnx.save(proto, tmp_path / "m.onnx")
    try:
        result = run(tmp_path / "m.onnx")
    except InputError as error:
        assert "there are no calibration samples; give some with --calibration" in str(error)
    else:  # it was found after all
        assert result.report.to_dict()["calibration"]["synthesized"] is True


def test_from_the_command_line(relus: Path, data: Path, capsys) -> None:
    arguments = ["--plugin", *PLUGIN, "--passes", "clip-to-seen", "--calibration", str(data)]
    out = relus.parent / "cli.onnx"
    assert invoke(["run", str(relus), "-o", str(out), "--no-bench", "--budget", "0.5", "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calibration"]["samples"] == 8
    assert invoke(["bisect", str(relus), "--json", "--budget", "0.5", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["applications"] == 4
    assert invoke(["bisect", str(relus), "--json", *arguments, "--set", "clip-to-seen.share=0"]) == 1
    assert json.loads(capsys.readouterr().out)["culprits"]
