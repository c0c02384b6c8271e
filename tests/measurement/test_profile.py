"""Time by operator."""

import tempfile

import numpy as np
import onnx
import pytest

from graphopt.errors import InputError
from graphopt.measurement import profile
from graphopt.measurement.profile import _summarize


def test_rows_sum_up(make, feeds):
    made = profile(make("a", 4), feeds, threads=1, runs=20)
    assert made.runs == 20
    assert sum(r.share for r in made.nodes) == pytest.approx(1)
    assert sum(r.share for r in made.operators) == pytest.approx(1)
    assert sum(r.ms for r in made.nodes) == pytest.approx(sum(r.ms for r in made.operators))
    assert 0 < sum(r.ms for r in made.nodes) <= made.run_ms
    counts = {r.operator: r.count for r in made.operators}
    assert counts == {"MatMul": 4, "Relu": 4}
    assert made.operators[0].operator == "MatMul" and made.operators[0].share > 0.5
    assert len(made.nodes) == 8 and {r.provider for r in made.nodes} == {"cpu"}
    assert [r.ms for r in made.nodes] == sorted((r.ms for r in made.nodes), reverse=True)


def test_the_graph_as_written(make, feeds):
    path = make("a", 2, identities=True)
    written = profile(path, feeds, optimize=False, runs=2)
    final = profile(path, feeds, runs=2)
    assert {r.operator for r in written.operators} == {"MatMul", "Relu", "Identity"}
    assert {r.operator for r in final.operators} == {"MatMul", "Relu"}


def test_no_files_are_left(make, feeds, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    path = make("a", 1)
    monkeypatch.chdir(tmp_path / "cwd")
    profile(path, feeds, runs=1)
    with pytest.raises(InputError):
        profile(path, {}, runs=1)
    assert not list((tmp_path / "tmp").iterdir()) and not list((tmp_path / "cwd").iterdir())


def event(name, operator, ts, dur, index=0):
    args = {"op_name": operator, "provider": "CPUExecutionProvider", "node_index": str(index)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def run_event(ts, dur):
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


def test_warm_up_is_left_out_and_containers_give_their_subgraphs_time_away():
    warm = [event("if", "If", 0, 9000), run_event(0, 9001)]
    one = [event("in", "Exp", 10010, 30), event("in", "Exp", 10050, 30), event("if", "If", 10005, 100), run_event(10000, 200)]
    two = [event("in", "Exp", 20010, 50), event("if", "If", 20005, 100), run_event(20000, 300)]
    made = _summarize(warm + one + two)
    rows = {r.name: r for r in made.nodes}
    assert rows["in"].ms == pytest.approx(0.055) and rows["in"].count == 1.5
    assert rows["if"].ms == pytest.approx(0.045) and rows["if"].count == 1
    assert made.run_ms == pytest.approx(0.25) and made.runs == 2


def test_a_real_subgraph(tmp_path):
    text = """<ir_version: 9, opset_import: ["" : 17]> g (bool c, float[64,64] x) => (float[64,64] y) {
        y = If(c)<then_branch = t () => (float[64,64] p) { p = MatMul(x, x) },
                  else_branch = e () => (float[64,64] q) { q = Exp(x) }> }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    made = profile(tmp_path / "m.onnx", {"c": np.array(True), "x": np.ones((64, 64), np.float32)}, runs=5)
    assert {r.operator: r.count for r in made.operators} == {"If": 1, "MatMul": 1}
    assert sum(r.ms for r in made.operators) <= made.run_ms
