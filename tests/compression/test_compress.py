"""Compression from file to file: what is written, what it lost and gained, and what is said where it cannot be done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import recovery
from graphopt.cli.entry import invoke
from graphopt.compression import CompressionRequest, compress
from graphopt.compression.judging import Judge
from graphopt.compression.trials import Trials
from graphopt.errors import GraphoptError, InputError, OptionError, OutputError
from graphopt.recovery.tuning import Tuning
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


def run(images: str | Path, out: Path, *, budget: float = 0.03, tune: bool = False, **options) -> Result:
    more = {k: options.pop(k) for k in ("metric", "options", "preset") if k in options}
    request = Request(DIGITS, output=out, preset=more.pop("preset", "prune"), budget=budget, threads=1, tune=False, **more)
    return compress(CompressionRequest(request, str(images), seconds=0.4, tune=tune, **options))


def test_half_of_a_net_goes_for_a_small_loss(images: str, tmp_path: Path):
    before = DIGITS.read_bytes()
    result = run(images, tmp_path / "small.onnx", metric=METRIC, trials=3, budget=0.06)
    report = result.report.to_dict()
    assert result.exit_code == 0 and DIGITS.read_bytes() == before
    assert report["quality"]["loss"] <= 0.06 and report["after"]["parameters"] < 0.6 * report["before"]["parameters"]
    assert report["verification"]["verdict"] == "within-budget" and report["speed"]["ratio"] > 0
    story = report["compression"]
    assert story["samples"] == {"fitted": 29, "judged": 7, "tested": 6, "seed": 0} and len(story["trials"]) <= 3
    final = story["final"]
    assert final["loss"] == report["quality"]["loss"] and final["gap"] == pytest.approx(final["loss"] - final["decided_by"], abs=1e-6)
    assert sum(t["taken"] for t in story["trials"]) == 1 and not list(tmp_path.glob(".*"))
    assert any(layer["kept"] and layer["after"] < layer["before"] for layer in story["layers"])
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"), full_check=True)


def test_recovery_is_what_makes_it_possible(images: str, tmp_path: Path):
    result = run(images, tmp_path / "raw.onnx", metric=METRIC, trials=2, recover=False)
    assert result.exit_code == 1 and result.report.quality["loss"] < 0.05
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Tuning:
    """A tuning that takes a second."""
    pytest.importorskip("torch")
    return Tuning(epochs=2, batch=64)


def test_what_is_left_is_tuned_step_by_step(images: str, tmp_path: Path, quick: Tuning):
    result = run(images, tmp_path / "small.onnx", budget=0.9, trials=2, tune=True, tuning=quick, recover=False)
    story = result.report.extra["compression"]
    assert story["strategy"] == "gradual" and story["tuning"]["after"] < story["tuning"]["before"] and story["tuning"]["epochs"] == 2
    assert story["trials"][0]["share"] == 0.25 and result.report.after["parameters"] < result.report.before["parameters"]
    names = [p.name for p in result.report.passes]
    assert names.count("prune-channels") == 2 and names.index("fuse-conv-bn") < names.index("prune-channels")


def test_without_torch_nothing_is_tuned_and_that_is_said(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "torch" else object())
    result = run(images, tmp_path / "small.onnx", budget=0.9, trials=1, tune=None, recover=False)
    assert result.report.extra["compression"]["strategy"] == "at-once"
    assert any("was not tuned: torch is not installed" in w for w in result.report.warnings)
    with pytest.raises(InputError, match="tuning need torch"):
        run(images, tmp_path / "small.onnx", tune=True)


def test_a_run_that_was_cut_off_goes_on(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, made = tmp_path / "small.onnx", []
    attempt = Trials._measured

    def counted(self, share, model, detail):
        made.append(share)
        if len(made) == 3:
            raise KeyboardInterrupt
        return attempt(self, share, model, detail)

    monkeypatch.setattr(Trials, "_measured", counted)
    options = {"budget": 0.6, "trials": 3, "recover": False}
    with pytest.raises(KeyboardInterrupt):
        run(images, out, **options)
    assert not out.exists() and len(made) == 3
    result = run(images, out, **options)
    assert len(made) == 4 and out.exists()
    assert any(note.startswith("2 trials were there already") for note in result.report.notes)
    straight = run(images, tmp_path / "again.onnx", **options)
    for one, other in zip(*(r.report.extra["compression"]["trials"] for r in (result, straight)), strict=True):
        assert all(one[key] == other[key] for key in ("share", "loss", "parameters"))
    assert not list(tmp_path.glob(".*"))


def test_the_journal_of_another_run_is_not_gone_on_from(images: str, tmp_path: Path):
    journal = tmp_path / "journal"
    run(images, tmp_path / "a.onnx", budget=0.9, trials=1, recover=False, journal=journal)
    assert {f.name for f in journal.iterdir()} == {"journal.jsonl", "trial0.onnx"}
    with pytest.raises(OutputError, match="holds the journal of another run"):
        run(images, tmp_path / "b.onnx", budget=0.9, trials=1, recover=True, journal=journal)
    assert not (tmp_path / "b.onnx").exists()


def test_the_final_figures_come_of_samples_that_decided_nothing(tmp_path: Path):
    """What is learned from, what decides and what judges in the end have no sample in common."""
    for i in range(20):
        np.savez(tmp_path / f"{i:02}.npz", x=np.full((1, 3, 4, 4), i, np.float32) + array(1, 3, 4, 4, seed=i) / 100)
    weights = {"w": array(32, 3, 1, 1), "v": array(4, 32, 1, 1)}
    proto = model([node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["r"]), node("Conv", ["r", "v"], ["y"])],
                  {"x": ["n", 3, 4, 4]}, ["y"], weights)  # fmt: skip
    onnx.save(proto, tmp_path / "net.onnx")
    seen: dict[str, set[int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((recovery, "reconstruct"), (Judge, "__init__")):

            def spied(*given, _original=getattr(owner, name), **more):
                part = given[3] if isinstance(given[3], str) else "taught"
                seen.setdefault(part, set()).update(round(float(s.feeds["x"].mean())) for s in given[2])
                return _original(*given, **more)

            patch.setattr(owner, name, spied)
        request = Request(tmp_path / "net.onnx", output=tmp_path / "o.onnx", preset="prune", threads=1, budget=9.0)
        folder = tmp_path / "samples"
        folder.mkdir()
        for file in tmp_path.glob("*.npz"):
            file.rename(folder / file.name)
        compress(CompressionRequest(request, str(folder), seconds=0.2, tune=False, trials=1))
    assert {name: len(numbers) for name, numbers in seen.items()} == {"taught": 14, "validation": 3, "test": 3}
    assert len(set.union(*seen.values())) == 20


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
    request = Request(path, output=tmp_path / "o.onnx", preset="prune", threads=1)
    result = compress(CompressionRequest(request, str(samples), seconds=0.3, tune=False))
    assert result.report.before["parameters"] == result.report.after["parameters"]
    assert "samples are few" in result.report.warnings[0] and "nothing could be cut" in result.report.warnings[-1]
    assert result.exit_code == 1 and [r.reason for p in result.report.passes for r in p.refused] == ["it is an output of the model"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"target": 0.5}, OptionError, "the target speed-up must be above 1"),
        ({"preset": "default"}, OptionError, "no pass of the pipeline .default. cuts"),
        ({"budget": -1.0}, OptionError, "budget must be 0 or more"),
        ({"strategy": "slow"}, OptionError, "strategy must be one of at-once, gradual"),
        ({"trials": 0}, OptionError, "trials must be 1 or more"),
        ({"then": "nothing"}, OptionError, "nothing"),
        ({"tuning": Tuning(rate=-1.0)}, OptionError, "rate must be 0 or more"),
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
    words = ["compress", str(DIGITS), "--data", images, "-o", str(out), "--metric", METRIC, "--budget", "0.9", "--trials", "1"]
    words += ["--no-recover", "--tuning", "epochs=1", "--strategy", "at-once"]
    assert invoke([*words, "--threads", "1", "--json", "--report", str(report)]) in (0, 1)
    told = json.loads(capsys.readouterr().out)
    assert told["compression"]["share"] and out.exists() and "small.onnx" in report.read_text()
    assert invoke(["compress", str(DIGITS), "--data", str(tmp_path / "nothing"), "-o", str(tmp_path / "b.onnx")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert invoke(["compress", str(tmp_path / "no.onnx"), "--data", images]) == 2
