"""Whole runs of a net that int8 breaks at one place: the budget is kept, and only what must go back to float does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt.errors import InputError, OptionError, OutputError
from graphopt.pipeline.runner import Application, Candidate, Hold, PassRun
from graphopt.request import Request
from graphopt.run import Result, optimize
from graphopt.steering.narrowing import followers, units_of
from graphopt.workbench import Workbench
from tests.steering import outliers
from tests.support import ops

JOURNAL = "out.onnx.search.jsonl"


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return outliers.write(tmp_path)


def run(path: Path, **options: Any) -> Result:
    given = {"passes": ("quantize-static",), "calibration": str(path.parent / "data.npz"), "bench": False, "threads": 1} | options
    return optimize(Request(path, path.parent / "out.onnx", **given))


def figures(path: Path, report: dict[str, Any]) -> tuple[float, float]:
    """The largest distance and the least cosine on the samples that were not calibrated on, with the runtime as it comes."""
    aside = np.sort(np.random.default_rng(0).permutation(20)[:4])
    data = np.load(path.parent / "data.npz")["x"][aside]
    assert report["calibration"]["evaluation"] == 4
    a, b = (ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (path, report["output"]))
    pairs = [(a.run(None, {"x": x})[0].ravel().astype(float), b.run(None, {"x": x})[0].ravel().astype(float)) for x in data]
    distance = max(np.linalg.norm(p - q) / np.linalg.norm(p) for p, q in pairs)
    return float(distance), float(min(p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in pairs))


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (0.1, lambda d, c: d <= 0.1), ("5%", lambda d, c: d <= 0.05), ("26dB", lambda d, c: d <= 10**-1.3),
        ("cos:0.999", lambda d, c: c >= 0.999), (None, lambda d, c: d <= 0.1),
    ],
)  # fmt: skip
def test_every_form_of_budget_is_kept(net: Path, budget: Any, kept: Callable[[float, float], bool]) -> None:
    """As it comes, int8 is far outside; two layers in float are enough, and no more than these are given up."""
    result = run(net, budget=budget)
    report = result.report.to_dict()
    assert result.exit_code == 0
    assert report["verification"]["verdict"] == "within-budget"
    assert kept(*figures(net, report))
    precision = report["precision"]
    in_float = {u["node"] for u in precision["units"] if u["precision"] == "float"}
    assert in_float <= {f"conv{outliers.LOUD}", f"conv{outliers.LOUD + 1}", f"r{outliers.LOUD}"}
    assert f"conv{outliers.LOUD + 1}" in in_float
    assert precision["curve"][0]["back_in_float"] == 0
    assert not precision["curve"][0]["inside"]
    assert not Path(net.parent / JOURNAL).exists()
    assert any("no budget was given" in n for n in report["notes"]) == (budget is None)


def test_a_budget_that_nothing_keeps(net: Path) -> None:
    """The float model stays, exit code 0: it is within the budget."""
    report = run(net, budget="200dB").report.to_dict()
    assert report["verification"]["verdict"] in ("identical", "equivalent")
    assert "QuantizeLinear" not in ops(onnx.load(report["output"]))
    assert {u["precision"] for u in report["precision"]["units"]} == {"float"}
    assert any("no narrowing is within it" in n for n in report["notes"])


def test_what_is_within_the_budget_is_told_too(net: Path) -> None:
    report = run(net, budget=10.0).report.to_dict()
    precision = report["precision"]
    assert not precision["searched"]
    assert {u["why"] for u in precision["units"]} == {"within the budget"}
    alone = {u["node"]: u["alone"]["noise"] for u in precision["units"]}
    assert max(alone, key=alone.__getitem__) == f"conv{outliers.LOUD + 1}"
    assert {u["precision"] for u in precision["units"] if u["operator"] == "Conv"} == {"int8 and uint8"}
    worst = precision["worst"][0]
    assert worst["node"] == f"conv{outliers.LOUD + 1}"
    assert sum(worst["weight"]["counts"]) == outliers.CHANNELS**2 * 9
    assert worst["activations"][0]["high"] > 100


def counted(monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> list[int]:
    """How often quality is measured, from here on; the run is interrupted before the number `stop`."""
    calls: list[int] = []
    real = Workbench.figures

    def figures(self: Workbench, *args: Any, **kwargs: Any) -> Any:
        if stop is not None and len(calls) >= stop:
            raise KeyboardInterrupt
        calls.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Workbench, "figures", figures)
    return calls


@pytest.mark.parametrize("stop", [1, 11])
def test_an_interrupted_search_goes_on(net: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """The same result, nothing measured twice, and no journal left behind."""
    with monkeypatch.context() as patch:
        whole = counted(patch)
        expected = run(net, budget="26dB").report.to_dict()
    written = (net.parent / "out.onnx").read_bytes()
    (net.parent / "out.onnx").unlink()
    with monkeypatch.context() as patch:
        counted(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            run(net, budget="26dB")
    assert not (net.parent / "out.onnx").exists()
    assert len((net.parent / JOURNAL).read_text().splitlines()) == 1 + stop
    with monkeypatch.context() as patch:
        rest = counted(patch)
        found = run(net, budget="26dB").report.to_dict()
    assert len(rest) == len(whole) - stop
    assert found["precision"]["from_journal"] == stop
    assert found["precision"]["units"] == expected["precision"]["units"]
    assert (net.parent / "out.onnx").read_bytes() == written
    assert not (net.parent / JOURNAL).exists()


def test_a_killed_process_loses_nothing(net: Path) -> None:
    journal = net.parent / "search.jsonl"
    files = [str(net), "-o", str(net.parent / "out.onnx"), "--calibration", str(net.parent / "data.npz"), "--journal", str(journal)]
    rest = ["--passes", "quantize-static", "--budget", "26dB", "--no-bench", "--threads", "1", "-q"]
    command = [sys.executable, "-m", "graphopt", "run", *files, *rest]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 4:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    before = journal.read_bytes().count(b"\n") - 1
    assert before >= 3
    report = run(net, budget="26dB", journal=journal).report.to_dict()
    assert report["precision"]["from_journal"] >= before
    assert json.loads(journal.read_text().splitlines()[0])["graphopt.search"] == 1  # one that was asked for stays
    again = run(net, budget="26dB", journal=journal).report.to_dict()
    assert again["precision"]["from_journal"] == journal.read_bytes().count(b"\n") - 1
    assert again["precision"]["units"] == report["precision"]["units"]


@pytest.mark.parametrize("change", ["samples", "options", "model"])
def test_a_stale_journal_is_not_used(net: Path, change: str) -> None:
    journal = net.parent / "search.jsonl"
    run(net, budget="26dB", journal=journal)
    options: dict[str, Any] = {}
    if change == "samples":
        outliers.write(net.parent, seed=7)
    elif change == "options":
        options = {"options": {"quantize-static": {"method": "min-max"}}}
    else:
        proto = onnx.load(net)
        proto.graph.node[0].attribute[0].ints[:] = [2, 2, 0, 0]
        onnx.save(proto, net)
    report = run(net, budget="26dB", journal=journal, **options).report.to_dict()
    assert report["precision"]["from_journal"] == 0
    assert any("was begun anew" in n for n in report["notes"])


def test_another_file_in_its_place_is_left_alone(net: Path) -> None:
    (net.parent / JOURNAL).write_text("my notes\n")
    with pytest.raises(OutputError, match="stands where the journal"):
        run(net, budget="26dB")
    assert (net.parent / JOURNAL).read_text() == "my notes\n"
    assert not (net.parent / "out.onnx").exists()
    with pytest.raises(OutputError, match="no journal can be written"):
        run(net, journal=net.parent / "none" / "j")
    with pytest.raises(OptionError, match="seconds of a search"):
        run(net, search_seconds=-1)


def test_no_time_at_all(net: Path) -> None:
    """What there is no time to search for stays in float; the budget is kept all the same."""
    report = run(net, budget="26dB", search_seconds=0).report.to_dict()
    assert report["verification"]["verdict"] in ("identical", "equivalent", "within-budget")
    assert report["precision"]["complete"] is False
    assert figures(net, report)[0] <= 10**-1.3


# --- metrics ----------------------------------------------------------------------------------------------------------


def metric(net: Path, body: str) -> str:
    path = net.parent / "metric.py"
    path.write_text(
        "import numpy as np\nX = np.load(__file__.replace('metric.py', 'data.npz'))['x'][:6]\nseen = []\n"
        f"def score(run):\n    y = np.stack([run({{'x': x}})['y'][0] for x in X])\n    seen.append(y)\n    {body}\n"
    )
    return f"{path}:score"


CLOSE = "return float(1 - np.linalg.norm(y - seen[0]) / np.linalg.norm(seen[0]))"


def test_the_users_metric_is_kept(net: Path) -> None:
    """1 less the distance from what the original gave; of a lossy result 1 % may be lost where nobody says anything else."""
    for budget, limit in (("3%", 0.03), (None, 0.01)):
        report = run(net, budget=budget, metric=metric(net, CLOSE)).report.to_dict()
        assert report["quality"]["before"] == 1.0
        assert 1 - limit <= report["quality"]["after"] < 1
        assert report["precision"]["judged_by"] == "metric"
        assert "QuantizeLinear" in ops(onnx.load(report["output"]))


def test_a_metric_beside_a_budget_of_the_outputs_is_only_told(net: Path) -> None:
    report = run(net, budget="26dB", metric=metric(net, "return 1.0 if len(seen) == 1 else 0.0")).report.to_dict()
    assert report["quality"]["after"] == 0.0
    assert report["precision"]["judged_by"] == "outputs"
    assert figures(net, report)[0] <= 10**-1.3


@pytest.mark.parametrize("body", ["raise ValueError('boom')", "return float('nan')"])
def test_a_metric_that_fails_on_the_original(net: Path, body: str) -> None:
    with pytest.raises(InputError, match=r"metric .*score on .*m\.onnx"):
        run(net, budget=0.01, metric=metric(net, body))
    assert not (net.parent / "out.onnx").exists()


@pytest.mark.parametrize("body", ["raise ValueError('boom')", "return float('nan')"])
def test_a_metric_that_fails_on_what_is_lossy(net: Path, body: str) -> None:
    """The float model stays."""
    body = f"if np.abs(y - seen[0]).max() > 1e-4: {body}\n    return 1.0"
    result = run(net, budget=0.01, metric=metric(net, body))
    report = result.report.to_dict()
    assert result.exit_code == 0
    assert "QuantizeLinear" not in ops(onnx.load(report["output"]))
    assert any("on the result" in n for n in report["notes"])


def test_what_corrects_a_unit_is_no_unit() -> None:
    """The pass that goes after another one at the same nodes has no precision of its own."""
    made = [Application(0, "fold", "a"), Application(1, "narrow", "a"), Application(2, "narrow", "b"), Application(3, "correct", "a_1")]
    runs = [PassRun("fold", "exact", 1), PassRun("narrow", "lossy", 2), PassRun("correct", "lossy", 1, corrects=True)]
    candidate = Candidate(None, runs, made, Hold(), [])  # type: ignore[arg-type]
    assert [a.number for a in units_of(candidate)] == [1, 2]
    assert followers(candidate) == {"correct"}


def test_a_placement_that_brings_it_within_the_budget(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to search then; what narrowing costs is measured of the result all the same."""
    from dataclasses import replace

    from graphopt.verifying import Verifying

    def placed(self: Verifying, candidate: Candidate) -> Candidate:
        loud = {a.number for a in candidate.applications if a.label in ("conv2", "conv3")}
        return self.bench.build(replace(candidate.hold, applications=candidate.hold.applications | loud))

    monkeypatch.setattr(Verifying, "_placed", placed)
    monkeypatch.setattr("graphopt.run.Run._fastest", lambda self, candidate: candidate)
    small = net.parent / "small.toml"
    small.write_text('[[step]]\npass = "quantize-static"\n')
    report = run(net, passes=None, preset=str(small), budget="26dB", bench=True, tune=False).report.to_dict()
    precision = report["precision"]
    assert report["verification"]["verdict"] == "within-budget"
    assert not precision["searched"]
    assert precision["quality"]["snr"] >= 26
    assert all(u["alone"] is not None for u in precision["units"])
