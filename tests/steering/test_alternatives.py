"""What other presets would gain, by tables of speeds and in whole runs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from graphopt.errors import OptionError
from graphopt.pipeline.presets import Pipeline, load_preset, preset_names
from graphopt.pipeline.registry import Registry
from graphopt.pipeline.runner import Hold
from graphopt.request import Request, alternatives, plan
from graphopt.run import optimize
from graphopt.steering.alternatives import Alternative, look
from graphopt.workbench import Workbench
from tests.steering.tables import Passes, speed
from tests.support import model, node


class Table(Passes):
    """Candidates whose passes are those of the pipeline's name, "a+b"; `wrong` names those that compute something else."""

    wrong: str = ""

    def build(self, hold: Hold | None = None, pipeline: Pipeline | None = None):
        names, self.names = self.names, self.names if pipeline is None else pipeline.name.split("+")
        try:
            return super().build(hold)
        finally:
            self.names = names

    def compare(self, candidate, *, final=True):
        assert not final
        bad = self.wrong and any(a.pass_name == self.wrong for a in candidate.applications)
        return ("wrong", {"verdict": "different"}) if bad else (None, {"verdict": "equivalent"})


def pipelines(*names: str) -> list[Pipeline]:
    return [Pipeline(name, ()) for name in names]


def test_it_is_timed_beside_the_result() -> None:
    bench = Table(["a"], lambda applied: 10.0 / len(applied))
    (found,) = look(bench, bench.build(), pipelines("a+b"), expected_seconds=1.0)
    told = found.to_dict()
    assert (told["preset"], told["verdict"], told["ratio"], told["faster"]) == ("a+b", "equivalent", 2.0, True)
    assert bench.raced == [(("a",), ("a", "b"))]


def test_one_final_graph_is_not_timed() -> None:
    bench = Table(["a"], lambda applied: 1.0, alike=("b",))
    (found,) = look(bench, bench.build(), pipelines("a+b"), expected_seconds=1.0)
    assert found == Alternative("a+b", "equivalent", same=True)
    assert found.to_dict()["ratio"] == 1.0 and found.to_dict()["pairs"] == 0
    assert bench.raced == []


def test_what_computes_something_else_has_no_speed() -> None:
    bench = Table(["a"], lambda applied: 1.0)
    bench.wrong = "b"
    (found,) = look(bench, bench.build(), pipelines("a+b"), expected_seconds=1.0)
    assert (found.verdict, found.to_dict()["ratio"]) == ("different", None)
    assert bench.raced == []


def test_what_was_undone_stays_out() -> None:
    bench = Table(["a", "bad"], lambda applied: 10.0 / len(applied))
    look(bench, bench.build(Hold(passes=frozenset({"bad"}))), pipelines("a+bad+b"), expected_seconds=1.0)
    assert bench.raced == [(("a",), ("a", "b"))]


@pytest.mark.parametrize(("expected", "tried"), [(1.0, 3), (4.0, 2), (11.0, 0)])
def test_time_is_bounded(expected: float, tried: int) -> None:
    bench = Table(["a"], lambda applied: 10.0 / len(applied))
    assert len(look(bench, bench.build(), pipelines("a+b", "a+c", "a+d"), expected_seconds=expected)) == tried


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model([node("Identity", ["x"], ["i"]), node("Sigmoid", ["i"], ["y"])], {"x": [8, 64]}, {"y": [8, 64]}), path)
    return path


def preset(folder: Path, name: str, *passes: str, **keys: object) -> Path:
    file = folder / f"{name}.toml"
    head = "".join(f"{key} = {value!r}\n" for key, value in keys.items())
    file.write_text(head + "".join(f'[[step]]\npass = "{p}"\n' for p in passes))
    return file


def test_in_a_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workbench, "speed_of", lambda self, *args, **small: speed(1.0))
    chosen = preset(tmp_path, "mine", "eliminate-identity", alternatives=["clean", "no-such-preset"])
    report = optimize(Request(path, tmp_path / "out.onnx", preset=str(chosen), threads=1, tune=False)).report.to_dict()
    (other,) = report["alternatives"]
    assert (other["preset"], other["verdict"], other["ratio"], other["pairs"]) == ("clean", "identical", 1.0, 0)


@pytest.mark.parametrize("options", [{"bench": False}, {"passes": ("eliminate-identity",)}, {"verify": "off"}, {"bake": True}])
def test_nothing_to_compare(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    monkeypatch.setattr(Workbench, "speed_of", lambda self, *args, **small: speed(1.0))
    monkeypatch.setattr(Workbench, "race", lambda self, *args, **small: speed(1.0))
    chosen = preset(tmp_path, "mine", "eliminate-identity", alternatives=["clean"])
    request = Request(path, tmp_path / "out.onnx", **{"preset": str(chosen), "threads": 1, "tune": False} | options)
    assert optimize(request).report.to_dict()["alternatives"] == []


def test_options_that_another_preset_does_not_take(path: Path, tmp_path: Path) -> None:
    chosen = preset(tmp_path, "mine", "quantize-weights", alternatives=["clean"])
    request = Request(path, preset=str(chosen))
    assert [p.name for p in alternatives(request, *plan(request))] == ["clean"]
    request = Request(path, preset=str(chosen), options={"quantize-weights": {"min-elements": "1"}})
    assert alternatives(request, *plan(request)) == []


def test_alternatives_must_be_names(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="alternatives is a list of names"):
        load_preset(str(preset(tmp_path, "mine", "eliminate-identity", alternatives="clean")), Registry.discover())


def test_those_of_the_built_in_presets_are_there() -> None:
    registry = Registry.discover()
    assert {a for name in preset_names() for a in load_preset(name, registry).alternatives} <= set(preset_names())
    assert load_preset("default", registry).alternatives
