"""What a placement comes to: predicted, built, raced, and the fastest kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest

from graphopt.measurement import Speed, final_graph
from graphopt.pipeline.runner import Candidate, Hold
from graphopt.placement import conversions, place
from graphopt.reporting import html, terminal
from graphopt.request import Request
from graphopt.rewriting.changes import application
from graphopt.run import optimize
from graphopt.steering import placing
from graphopt.workbench import Workbench
from tests.placement.nets import TARGET, Bench, clock, mixed
from tests.placement.test_place import kernel_ms
from tests.support import REGISTRY, array, model, node, ops

NAME = "quantize-static"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(conversions.Conversions, "measure", lambda self, cases: None)
    monkeypatch.setattr(conversions.Conversions, "ms", lambda self, kind, shape: 0.2 if kind.endswith("quantize") else 0.0)


class Racing(Bench):
    """Candidates whose races a clock decides. lie: by how much the race differs from the traces, by the number of units narrowed."""

    def __init__(self, folder: Path, ms: Callable, lie: Callable[[int], float] = lambda narrowed: 1.0) -> None:
        super().__init__(mixed(), folder)
        self.ms, self.lie = ms, lie
        self.raced: list[list[int]] = []

    def race_all(self, candidates: Sequence[Candidate], seconds: float) -> list[Speed]:
        times = []
        for candidate in candidates:
            narrowed = len(candidate.applications)
            times.append(clock(self.ms)([self.keep(candidate)], {})[0].run_ms * self.lie(narrowed))
        self.raced.append([len(c.applications) for c in candidates])
        first = times[0]
        return [Speed(first / t, first / t, first / t, first, t, 9, 0.95, 1.0, 1.0, 1, "cpu") for t in times[1:]]


def dear_conversions(kernel) -> float:
    return 0.3 if kernel.operator in ("QuantizeLinear", "DequantizeLinear") else kernel_ms(kernel)


def run(bench: Racing, monkeypatch: pytest.MonkeyPatch) -> placing.Placing:
    monkeypatch.setattr(place, "time_kernels", clock(bench.ms))
    return placing.place(bench, bench.build(), bench.pipeline.steps, TARGET)


def test_a_part_that_loses_stays_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Racing(tmp_path, dear_conversions)
    found = run(bench, monkeypatch)
    assert found.kept == "placed"
    assert found.candidate.hold == Hold(applications=found.placement.hold)
    held = {u.label for u in found.placement.units if not u.narrow}
    assert held == {"lone", "two"}
    floats = [n.name for n in found.candidate.model.graph.graph if n.op_type == "Conv" and application(n) is None]
    assert floats == ["lone", "two"]
    assert found.measured_ms["placed"] < min(found.measured_ms["all"], found.measured_ms["float"])
    for name, ms in found.measured_ms.items():
        assert found.placement.predicted_ms[name] == pytest.approx(ms, rel=0.03)
    assert found.to_dict()["text"].startswith("5 of 7 units narrowed: 1.0")
    assert bench.raced == [[7, 0, 5]]


def test_where_the_race_says_otherwise_the_race_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Racing(tmp_path, dear_conversions, lambda narrowed: 2.0 if narrowed == 5 else 1.0)
    found = run(bench, monkeypatch)
    assert found.kept == "all"
    assert not found.candidate.hold.applications
    bench = Racing(tmp_path, dear_conversions, lambda narrowed: 9.0 if narrowed else 1.0)
    found = run(bench, monkeypatch)
    assert found.kept == "float"
    assert not found.candidate.applications
    assert "0 of 7 units narrowed: float is fastest" in found.text()


def test_as_good_as_even_runs_less_on_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Racing(tmp_path, dear_conversions)
    everything = bench.ms
    all_ms, placed_ms = (run(Racing(tmp_path, everything), monkeypatch).measured_ms[k] for k in ("all", "placed"))
    bench.lie = lambda narrowed: 0.997 * placed_ms / all_ms if narrowed == 7 else 1.0  # faster, but within the noise
    assert run(bench, monkeypatch).kept == "placed"


def test_nothing_is_placed_where_nothing_was_narrowed(tmp_path: Path) -> None:
    bench = Racing(tmp_path, kernel_ms)
    candidate = bench.build(Hold(passes=frozenset({NAME})))
    assert placing.place(bench, candidate, bench.pipeline.steps, TARGET) is None
    assert placing.place(bench, bench.build(), [], TARGET) is None


def test_what_cannot_be_placed_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_LARGEST", 10)
    bench = Racing(tmp_path, kernel_ms)
    found = run(bench, monkeypatch)
    assert (found.kept, found.text()[:30]) == ("all", "not placed: the model is too l")
    assert found.to_dict()["units"] == [] and not bench.raced


def test_a_later_pass_does_not_take_what_was_held_back(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w0"], ["a"]), node("Elu", ["a"], ["e"]), node("MatMul", ["e", "w1"], ["b"]), node("Exp", ["b"], ["y"])]
    proto = model(nodes, {"x": [1, 8, 12, 12]}, {"y": None}, {f"w{i}": array(12, 12, seed=i) / 8 for i in range(2)})
    bench = Bench(proto, tmp_path, NAME)
    steps = [REGISTRY.get(NAME)(), REGISTRY.get("quantize-dynamic").configure({"min-elements": 1})]
    bench.pipeline = type(bench.pipeline).of("test", steps)
    full = bench.build()
    assert [(a.pass_name, a.label) for a in full.applications] == [(NAME, "a"), (NAME, "b")]
    trial = bench.build(Hold(applications=frozenset({0})))
    assert [(a.pass_name, a.label) for a in trial.applications] == [(NAME, "b"), ("quantize-dynamic", "a")]
    made = placing.held_back(bench, full, frozenset({0}), [s.name for s in steps])
    assert [(a.pass_name, a.label) for a in made.applications] == [(NAME, "b")]


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From file to file: the result has float convolutions where conversions cost too much, and the report says so."""
    monkeypatch.setattr(place, "time_kernels", clock(dear_conversions))
    monkeypatch.setattr("graphopt.steering.neverslower._SECONDS", 0.5)
    monkeypatch.setattr(Workbench, "speed_of", lambda self, *args, **kwargs: speed(1.5))
    monkeypatch.setattr(Workbench, "race", lambda self, *args, **kwargs: speed(1.0))

    def race_all(self, candidates: Sequence[Candidate], seconds: float) -> list[Speed]:
        narrowed = [sum(a.pass_name == NAME for a in c.applications) for c in candidates]
        assert narrowed == [7, 0, 5]
        return [speed(0.8), speed(1.2)]

    monkeypatch.setattr(Workbench, "race_all", race_all)
    onnx.save(mixed(), tmp_path / "m.onnx")
    (tmp_path / "static.toml").write_text(f'[[step]]\npass = "{NAME}"\n')
    request = Request(
        tmp_path / "m.onnx", tmp_path / "out.onnx", preset=str(tmp_path / "static.toml"), budget=1e9, threads=1, tune=False
    )
    result = optimize(request)
    report = result.report.to_dict()
    assert report["placement"]["kept"] == "placed"
    units = {u["node"]: u for u in report["placement"]["units"]}
    assert {n for n, u in units.items() if u["precision"] == "float"} == {"lone", "two"}
    assert report["verification"]["verdict"] == "within-budget"
    found = final_graph(tmp_path / "out.onnx", threads=1).operators
    assert sum(count for name, count in found.items() if name.endswith("QLinearConv")) == 3
    assert ops(onnx.load(tmp_path / "out.onnx"))["QuantizeLinear"] == 6
    text = terminal.render(result.report, width=200)
    assert "Placement   5 of 7 units narrowed: 1.20x beside everything on integers, 1.50x beside float" in text
    assert "float: lone (Conv, 1.01 ms, 0.5" in text
    page = html.render(result.report)
    assert "<h2>Placement</h2>" in page and page.count("conversions would cost what its kernel saves") == 2


def speed(ratio: float) -> Speed:
    return Speed(ratio, ratio, ratio, 1.0, 1.0 / ratio, 9, 0.95, 1.0, 1.0, 1, "cpu")


def test_everything_where_everything_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Racing(tmp_path, kernel_ms)
    found = run(bench, monkeypatch)
    assert found.kept == "all"
    assert bench.raced == [[7, 0]]
    assert found.text().startswith("7 of 7 units narrowed: everything on integers is fastest, 1.38x beside float")
