"""Results as the runtime itself optimizes them: what is kept, what is said of them, and when that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt import runtime
from graphopt.errors import InputError, OptionError
from graphopt.request import Request
from graphopt.run import Result, optimize
from graphopt.steering import baking
from graphopt.workbench import Workbench
from tests.steering.tables import speed
from tests.support import array, assert_same, model, node


def network(*, overridable: bool = False) -> onnx.ModelProto:
    """Two convolutions with their activations, which the runtime fuses and lays out its own way, and a Gemm."""
    weights = {"w": array(16, 3, 3, 3), "u": array(16, 16, 3, 3), "g": array(16, 8), "b": array(8, seed=1)}
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "u"], ["d"]), node("Relu", ["d"], ["s"]),
        node("GlobalAveragePool", ["s"], ["p"]), node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "g"], ["m"]), node("Add", ["m", "b"], ["y"]),
    ]  # fmt: skip
    made = model(nodes, {"x": ["batch", 3, "height", "width"]}, {"y": ["batch", 8]}, weights)
    if overridable:
        made.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [8]))
    made.producer_name, made.doc_string, made.graph.doc_string = "a tool", "what it is for", "of the graph"
    helper.set_model_props(made, {"labels": "cat,dog"})
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    return path


def run(path: Path, **kwargs) -> Result:
    return optimize(Request(path, path.parent / "out.onnx", **{"threads": 1, "bench": False, "bake": True} | kwargs))


FEEDS = {"x": array(2, 3, 9, 11)}


def test_the_runtimes_own_graph_is_the_result(path: Path) -> None:
    result = run(path)
    report = result.report.to_dict()
    assert result.exit_code == 0
    assert report["verification"]["verdict"] == "equivalent"
    out = onnx.load(report["output"])
    assert {n.domain for n in out.graph.node} - {"", "com.microsoft", "com.microsoft.nchwc"} == set()
    assert any(n.domain.startswith("com.microsoft") for n in out.graph.node)
    assert_same(network(), out, FEEDS)
    about = report["baked"]
    assert about["runtime"] == runtime.version() and about["provider"] == "cpu"
    assert about["isa"] == report["target"]["isa"]
    assert json.loads({p.key: p.value for p in out.metadata_props}[baking.KEY]) == about
    assert any("baked for runtime" in note for note in report["notes"])
    assert report["after"]["nodes"] == len(out.graph.node)


def test_interface_and_metadata_are_kept(path: Path) -> None:
    run(path)
    before, after = onnx.load(path), onnx.load(path.with_name("out.onnx"))
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert (after.producer_name, after.doc_string, after.graph.doc_string) == ("a tool", "what it is for", "of the graph")
    assert {p.key: p.value for p in after.metadata_props}["labels"] == "cat,dog"
    used = {n.domain for n in after.graph.node}
    assert {o.domain for o in after.opset_import} == used | {""}  # the runtime imports every domain that it knows


def test_an_initializer_that_a_caller_may_override_still_may_be(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(network(overridable=True), path)
    assert run(path).exit_code == 0
    assert_same(network(overridable=True), onnx.load(tmp_path / "out.onnx"), FEEDS | {"b": array(8, seed=9)})


def test_weights_in_files_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="model.data", size_threshold=64)
    result = run(path)
    assert result.exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.data", "model.onnx", "out.onnx", "out.onnx.data"]
    assert_same(network(), onnx.load(tmp_path / "out.onnx"), FEEDS)


@pytest.mark.parametrize("external", [False, True])
def test_what_is_too_large_for_one_file(path: Path, monkeypatch: pytest.MonkeyPatch, external: bool) -> None:
    if external:
        onnx.save(network(), path, save_as_external_data=True, location="model.data", size_threshold=64)
    monkeypatch.setattr(baking, "_INLINE", 100)
    assert run(path).exit_code == 0
    assert sorted(p.name for p in path.parent.iterdir() if p.name != "model.data") == ["model.onnx", "out.onnx", "out.onnx.data"]
    assert_same(network(), onnx.load(path.with_name("out.onnx")), FEEDS)


def test_in_place(path: Path) -> None:
    result = optimize(Request(path, threads=1, bench=False, bake=True, in_place=True))
    assert result.exit_code == 0
    assert_same(network(), onnx.load(path), FEEDS)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_the_result_of_a_result_is_the_same(path: Path) -> None:
    run(path)
    again = path.with_name("again.onnx")
    optimize(Request(path.with_name("out.onnx"), again, threads=1, bench=False, bake=True))
    assert_same(onnx.load(path.with_name("out.onnx")), onnx.load(again), FEEDS, exact=True)


def timed(monkeypatch: pytest.MonkeyPatch, race: float, speed_of: float) -> None:
    monkeypatch.setattr(Workbench, "race", lambda self, *args, **small: speed(race))
    monkeypatch.setattr(Workbench, "speed_of", lambda self, *args, **small: speed(speed_of))


def test_the_speed_reported_is_that_of_the_baked_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 1.0, 1.5)
    report = run(path, bench=True, tune=False).report.to_dict()
    assert report["speed"]["ratio"] == 1.5 and report["speed"]["session_after_ms"] > 0
    assert report["baked"]


@pytest.mark.parametrize(("race", "speed_of"), [(0.9, 1.2), (1.0, 0.9)])
def test_what_is_slower_baked_is_not(path: Path, monkeypatch: pytest.MonkeyPatch, race: float, speed_of: float) -> None:
    timed(monkeypatch, race, speed_of)
    result = run(path, bench=True, tune=False, passes=("eliminate-identity",))
    assert result.exit_code == 1
    assert result.report.extra["baked"] is None
    assert any("was not baked: it is slower so: 0.900x" in w for w in result.report.warnings)
    assert_same(network(), onnx.load(path.with_name("out.onnx")), FEEDS, exact=True)


def test_what_computes_something_else_baked_is_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = baking.bake

    def wrong(*args):
        made, about = real(*args)
        bias = next(v for v in made.graph.graph.initializers.values() if list(v.shape) == [8])
        bias.const_value = ir.tensor(np.full(8, 9, np.float32), name=bias.name)
        return made, about

    monkeypatch.setattr(baking, "bake", wrong)
    result = run(path)
    assert result.exit_code == 1
    assert any("does not compute the same" in w for w in result.report.warnings)
    assert result.report.verification["verdict"] in ("identical", "equivalent")
    assert_same(network(), onnx.load(path.with_name("out.onnx")), FEEDS)


def test_a_graph_that_the_runtime_cannot_write_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = runtime.session

    def session(model, *, optimized_path=None, **kwargs):
        if optimized_path is not None and Path(optimized_path).name == "baked.onnx":
            raise InputError(f"{model}: Unable to serialize model as it contains compiled nodes")
        return real(model, optimized_path=optimized_path, **kwargs)

    monkeypatch.setattr(runtime, "session", session)
    with pytest.raises(OptionError, match="--bake: ONNX Runtime cannot write the graph that it runs on cpu: Unable to serialize"):
        run(path)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
