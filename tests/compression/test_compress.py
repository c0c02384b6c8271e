"""Compression from file to file: what is written, what it lost and gained, and what is said where it cannot be done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.cli.entry import invoke
from graphopt.compression import CompressionRequest, compress
from graphopt.errors import GraphoptError, InputError, OptionError
from graphopt.request import Request
from graphopt.run import Result
from tests.support import array, model, node

DIGITS = Path(__file__).parents[2] / "models/digits/digits.onnx"
METRIC = f"{DIGITS.with_name('metric.py')}:accuracy"


@pytest.fixture
def images() -> str:
    """The images that digits was trained on, without labels."""
    pytest.importorskip("sklearn")
    return f"{DIGITS.with_name('samples.py')}:unlabelled"


def run(images: str | Path, out: Path, *, budget: float = 0.03, **options) -> Result:
    more = {k: options.pop(k) for k in ("metric", "options", "preset") if k in options}
    request = Request(DIGITS, output=out, preset=more.pop("preset", "prune"), budget=budget, threads=1, tune=False, **more)
    return compress(CompressionRequest(request, str(images), seconds=0.4, **options))


def test_half_of_a_net_goes_for_a_small_loss(images: str, tmp_path: Path):
    before = DIGITS.read_bytes()
    result = run(images, tmp_path / "small.onnx", metric=METRIC, trials=4)
    report = result.report.to_dict()
    assert result.exit_code == 0 and DIGITS.read_bytes() == before
    assert report["quality"]["loss"] <= 0.03 and report["after"]["parameters"] < 0.6 * report["before"]["parameters"]
    assert report["verification"]["verdict"] == "within-budget" and report["speed"]["ratio"] > 0
    story = report["compression"]
    assert story["samples"] == {"fitted": 34, "judged": 8, "seed": 0} and len(story["trials"]) <= 4
    assert any(layer["kept"] and layer["after"] < layer["before"] for layer in story["layers"])
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"), full_check=True)


def test_recovery_is_what_makes_it_possible(images: str, tmp_path: Path):
    result = run(images, tmp_path / "raw.onnx", metric=METRIC, trials=2, recover=False)
    assert result.exit_code == 1 and result.report.quality is None
    assert "nothing was cut: even" in result.report.warnings[-1]
    assert result.report.after["nodes"] == 22  # lossless passes alone, and those verified
    assert result.report.verification["verdict"] == "equivalent"


def test_without_a_metric_the_outputs_judge(images: str, tmp_path: Path):
    result = run(images, tmp_path / "small.onnx", budget=0.4, trials=3)
    story = result.report.extra["compression"]
    assert result.exit_code == 0 and story["judged_by"].startswith("root mean square error")
    best = next(t for t in story["trials"] if t["share"] == story["share"])
    assert 0 < best["loss"] <= 0.4


def test_a_target_that_is_not_reached_is_said(images: str, tmp_path: Path):
    result = run(images, tmp_path / "small.onnx", metric=METRIC, trials=2, target=500.0)
    assert result.exit_code == 1 and "the target of 500x was not reached" in result.report.warnings[-1]
    assert (tmp_path / "small.onnx").exists()


def one_layer(tmp_path: Path) -> Path:
    """A model in which nothing can be cut."""
    proto = model([node("Conv", ["x", "w"], ["y"])], {"x": ["n", 3, 4, 4]}, ["y"], {"w": array(4, 3, 1, 1)})
    onnx.save(proto, tmp_path / "one.onnx")
    for i in range(3):
        np.savez(tmp_path / f"s{i}.npz", x=array(2, 3, 4, 4, seed=i))
    return tmp_path / "one.onnx"


def test_a_model_in_which_nothing_can_be_cut(tmp_path: Path):
    path = one_layer(tmp_path)
    samples = tmp_path / "samples"
    samples.mkdir()
    for file in tmp_path.glob("s*.npz"):
        file.rename(samples / file.name)
    result = compress(CompressionRequest(Request(path, output=tmp_path / "o.onnx", preset="prune", threads=1), str(samples), seconds=0.3))
    assert result.report.before["parameters"] == result.report.after["parameters"]
    assert "samples are few" in result.report.warnings[0] and "nothing could be cut" in result.report.warnings[-1]
    assert result.exit_code == 1 and [r.reason for p in result.report.passes for r in p.refused] == ["it is an output of the model"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"target": 0.5}, OptionError, "the target speed-up must be above 1"),
        ({"preset": "default"}, OptionError, "no pass of the pipeline .default. cuts"),
        ({"budget": -1.0}, OptionError, "budget must be 0 or more"),
    ],
)
def test_requests_that_make_no_sense(images: str, tmp_path: Path, change, error: type[GraphoptError], text: str):
    with pytest.raises(error, match=text):
        run(images, tmp_path / "small.onnx", **change)
    assert not (tmp_path / "small.onnx").exists()


def test_one_sample_is_too_few(tmp_path: Path):
    np.savez(tmp_path / "one.npz", image=array(1, 1, 8, 8))
    with pytest.raises(InputError, match="at least two are needed"):
        run(tmp_path / "one.npz", tmp_path / "small.onnx")


def test_command_line(images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, report = tmp_path / "small.onnx", tmp_path / "report.html"
    words = ["compress", str(DIGITS), "--data", images, "-o", str(out), "--metric", METRIC, "--budget", "0.03", "--trials", "2"]
    assert invoke([*words, "--threads", "1", "--json", "--report", str(report)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["compression"]["share"] and out.exists() and "small.onnx" in report.read_text()
    assert invoke(["compress", str(DIGITS), "--data", str(tmp_path / "nothing"), "-o", str(tmp_path / "b.onnx")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert invoke(["compress", str(tmp_path / "no.onnx"), "--data", images]) == 2
