"""Whole runs that decide by measuring: what is kept, what is written beside the model, what the report says."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import graphopt
from graphopt.errors import OutputError
from graphopt.measurement import Latency
from graphopt.request import Request
from graphopt.run import Result, optimize
from graphopt.workbench import Workbench
from tests.steering import risky
from tests.steering.tables import speed
from tests.support import model, node, ops

RISKY = (str(Path(risky.__file__)),)


@pytest.fixture(autouse=True)
def in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.steering.neverslower._SECONDS", 3.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    nodes = [node("Identity", ["x"], ["i"]), node("Sigmoid", ["i"], ["s"]), node("Exp", ["s"], ["e"]), node("Abs", ["e"], ["y"])]
    onnx.save(model(nodes, {"x": [64, 2048]}, {"y": [64, 2048]}), path)
    return path


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "risky.toml"
    path.write_text('[[step]]\npass = "eliminate-identity"\n[[step]]\npass = "burden"\n[[step]]\npass = "shadow"\n')
    return path


def run(path: Path, **kwargs) -> Result:
    return optimize(Request(path, path.parent / "out.onnx", **{"threads": 1, "tune": False, "plugins": RISKY} | kwargs))


def even(monkeypatch: pytest.MonkeyPatch, **ratios: float) -> None:
    """Every timing says that nothing changes, but for those named."""
    monkeypatch.setattr(Workbench, "speed_of", lambda self, *args, **small: speed(ratios.get("speed_of", 1.0)))
    monkeypatch.setattr(Workbench, "race", lambda self, *args, **small: speed(ratios.get("race", 1.0)))
    monkeypatch.setattr(Workbench, "latency", lambda self, path: Latency(1.0, 1.0, 1.0, 9, 0.95, 1.0, 1, "cpu"))
    monkeypatch.setattr(Workbench, "optimizers", lambda self, path: ("Something",))
    graph = Workbench.graph_with

    def by_settings(self, path, settings):
        plain = graph(self, path, None)
        return plain if settings is None else (plain, settings.disabled)

    monkeypatch.setattr(Workbench, "graph_with", by_settings)
    session = lambda self, path, a, b, *rest: speed(ratios.get("session", 1.0) if a != b else 1.0)  # noqa: E731
    monkeypatch.setattr(Workbench, "race_settings", session)


def record(result: Result, name: str) -> dict:
    return next(p for p in result.report.to_dict()["passes"] if p["name"] == name)


def test_a_pass_that_loses_here_is_undone(path: Path, preset: Path) -> None:
    result = run(path, preset=str(preset))
    report = result.report.to_dict()
    assert ops(onnx.load(report["output"])) == {"Sigmoid": 1, "Exp": 1, "Abs": 1}
    burden, shadow = report["choices"]
    assert (burden["pass"], burden["decision"]) == ("burden", "undone")
    assert burden["ratio"] < 1 and burden["nodes_with"] > burden["nodes_without"]
    assert (shadow["pass"], shadow["decision"], shadow["ratio"]) == ("shadow", "undone", None)
    assert "same graph" in shadow["reason"]
    assert record(result, "burden")["status"] == "rolled-back"
    assert "undone: it is slower" in record(result, "burden")["note"]
    assert report["verification"]["verdict"] == "identical"
    assert not report["warnings"]


def test_a_pass_that_gains_is_kept_and_its_nodes_are_accounted_for(path: Path, preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    even(monkeypatch, race=1.3, speed_of=1.2)
    result = run(path, preset=str(preset))
    report = result.report.to_dict()
    assert ops(onnx.load(report["output"]))["Abs"] == 21
    assert report["choices"][0] | {"decision": "kept", "ratio": 1.3} == report["choices"][0]
    assert "40 nodes more" in record(result, "burden")["note"]
    assert "the result has 19 nodes more than the model: it measures 1.20x faster so" in report["notes"]


def test_without_measuring_a_pass_decides_for_itself(path: Path, preset: Path) -> None:
    result = run(path, preset=str(preset), bench=False)
    report = result.report.to_dict()
    assert ops(onnx.load(report["output"])) == {"Sigmoid": 1, "Exp": 1, "Abs": 21}
    assert record(result, "burden")["status"] == "kept"
    assert (record(result, "shadow")["status"], record(result, "shadow")["applied"]) == ("no-change", 0)
    assert "nothing was measured" in record(result, "shadow")["note"]
    assert report["choices"] == []


def test_passes_asked_for_by_name_are_not_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    even(monkeypatch, race=0.5)
    report = run(path, passes=("shadow",)).report.to_dict()
    assert report["choices"] == []
    assert ops(onnx.load(report["output"]))["Identity"] == 2
    assert ops(onnx.load(run(path, passes=("shadow",), bench=False).report.output))["Identity"] == 2


def test_settings_that_gain_are_written_beside_the_model(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    even(monkeypatch, session=1.1)
    result = run(path, tune=True)
    session = result.report.to_dict()["session"]
    beside = path.with_name("out.session.json")
    assert session["file"] == str(beside)
    assert session["settings"]["disabled_optimizers"] == ["Something"]
    assert (session["ratio"], session["low"]) == (1.1, 1.096)
    data = json.loads(beside.read_text())
    assert data["settings"] == session["settings"]
    assert data["target"]["threads"] == 1 and data["target"]["runtime"]
    assert graphopt.session(path.with_name("out.onnx")).get_outputs()[0].name == "y"
    assert result.report.speed["ratio"] == 1.0  # of the file alone
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "out.onnx", "out.session.json"]


def test_settings_of_an_earlier_result_do_not_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    even(monkeypatch, session=1.1)
    run(path, tune=True)
    even(monkeypatch)
    report = run(path, tune=True).report.to_dict()
    assert report["session"] is None
    assert not path.with_name("out.session.json").exists()
    graphopt.session(path.with_name("out.onnx"))


def test_settings_that_compute_something_else_are_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    even(monkeypatch, session=1.1)
    real = Workbench.compare

    def compare(self, candidate, *, settings=None, **kwargs):
        return ("output 'y': wrong", {}) if settings is not None else real(self, candidate, **kwargs)

    monkeypatch.setattr(Workbench, "compare", compare)
    report = run(path, tune=True).report.to_dict()
    assert report["session"] is None
    assert not path.with_name("out.session.json").exists()
    assert any("Something switched off would be faster, but does not compute the same" in w for w in report["warnings"])


def test_a_search_with_the_clock(path: Path) -> None:
    report = run(path, tune=True).report.to_dict()
    assert (report["session"] is None) == (not path.with_name("out.session.json").exists())
    graphopt.session(path.with_name("out.onnx"))


@pytest.mark.parametrize("options", [{"tune": False}, {"bench": False}, {"verify": "off"}])
def test_no_search_where_it_is_not_wanted_or_nothing_can_be_run(path: Path, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    even(monkeypatch, session=1.1)
    assert run(path, **{"tune": True} | options).report.to_dict()["session"] is None


def test_a_file_of_somebody_else_is_not_overwritten(path: Path) -> None:
    path.with_name("out.session.json").write_text('{"of": "mine"}')
    with pytest.raises(OutputError, match="stands where the settings"):
        run(path)
    assert path.with_name("out.session.json").read_text() == '{"of": "mine"}'
    assert not path.with_name("out.onnx").exists()


@pytest.mark.parametrize(("load", "tells"), [(0.1, True), (500.0, False)])
def test_threads_say_nothing_on_a_machine_that_others_load(path: Path, monkeypatch: pytest.MonkeyPatch, load: float, tells: bool) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    assert Workbench(Request(path), None, None, None, path.parent).threads_tell() is tells
