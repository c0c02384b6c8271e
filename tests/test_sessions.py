"""Settings beside a model: written, read, noticed when they are another model's, and a session opened with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt
from graphopt import sessions
from graphopt.errors import GraphoptError, OptionError, OutputError
from graphopt.settings import Settings
from tests.support import array, model, node

TARGET = {"runtime": "1.32.0", "provider": "cpu", "device": "a CPU", "threads": 2, "isa": "avx2"}
SPEED = {"ratio": 1.1, "low": 1.05, "high": 1.15, "pairs": 40}
SETTINGS = Settings("extended", ("BiasGeluFusion",), 1, {"session.intra_op.allow_spinning": "0"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "fast.onnx"
    onnx.save(model([node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["y"])], {"x": [2, 4]}, ["y"], {"w": array(4, 4)}), path)
    return path


def made(monkeypatch: pytest.MonkeyPatch, *args, **kwargs) -> tuple[ort.SessionOptions, dict]:
    """The options that `graphopt.session` gives ONNX Runtime."""
    real, seen = ort.InferenceSession, []

    def spy(model, options, **rest):
        seen.append((options, rest))
        return real(model, options, **rest)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    session = graphopt.session(*args, **kwargs)
    assert session.run(None, {"x": np.ones((2, 4), np.float32)})[0].shape == (2, 4)
    return seen[-1]


def test_without_settings_a_plain_session(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, rest = made(monkeypatch, path)
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert not rest["disabled_optimizers"]
    assert options.get_session_config_entry("session.force_spinning_stop") == "0"


def test_with_those_beside_the_model(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = sessions.write_settings(path, SETTINGS, TARGET, SPEED)
    assert where == path.with_name("fast.session.json")
    options, rest = made(monkeypatch, str(path))
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    assert options.intra_op_num_threads == 1
    assert rest["disabled_optimizers"] == ["BiasGeluFusion"]
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_overrides_win(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions.write_settings(path, SETTINGS, TARGET, SPEED)
    config = {"session.intra_op.allow_spinning": "1"}
    options, rest = made(monkeypatch, path, threads=2, level="basic", disabled_optimizers=(), config=config)
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.intra_op_num_threads == 2
    assert not rest["disabled_optimizers"]
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    with pytest.raises(OptionError, match="graph_optimization_level must be one of"):
        graphopt.session(path, level="most")


def test_settings_of_another_provider_are_not_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions.write_settings(path, SETTINGS, TARGET | {"provider": "cuda"}, SPEED)
    options, rest = made(monkeypatch, path, provider="CPUExecutionProvider")
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert not rest["disabled_optimizers"]


def test_what_is_written_is_read_again(path: Path) -> None:
    sessions.write_settings(path, SETTINGS, TARGET, SPEED)
    data = json.loads(path.with_name("fast.session.json").read_text())
    assert data["settings"]["disabled_optimizers"] == ["BiasGeluFusion"]
    assert data["speed"] == SPEED and data["target"] == TARGET
    found = sessions.read_settings(path)
    assert (found.settings, found.speed, found.provider) == (SETTINGS, SPEED, "cpu")
    sessions.remove_settings(path)
    assert sessions.read_settings(path) is None
    sessions.remove_settings(path)  # there is nothing to remove, and that is all right


def test_a_model_that_was_changed_is_noticed(path: Path) -> None:
    sessions.write_settings(path, SETTINGS, TARGET, SPEED)
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(GraphoptError, match=r"fast\.session\.json: belongs to another model"):
        graphopt.session(path)


def test_a_change_far_into_a_large_file_counts_by_its_end(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(sessions._PART + 100))
    before = sessions.identity(large)
    large.write_bytes(bytes(sessions._PART + 99) + b"x")
    assert sessions.identity(large) != before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: "no json", "not valid JSON"),
        (lambda d: "[]", "not a file of session settings"),
        (lambda d: json.dumps({"settings": {}}), "not a file of session settings"),
        (lambda d: json.dumps(d | {"version": 2}), "of version 2"),
        (lambda d: json.dumps(d | {"target": 3}), "must be objects"),
        (lambda d: json.dumps(d | {"settings": []}), "not an object"),
        (lambda d: json.dumps(d | {"settings": {"optimization": 1}}), "unknown setting 'optimization'"),
        (lambda d: json.dumps(d | {"settings": {"graph_optimization_level": "most"}}), "must be one of disabled, basic"),
        (lambda d: json.dumps(d | {"settings": {"disabled_optimizers": "all"}}), "must be a list of names"),
        (lambda d: json.dumps(d | {"settings": {"intra_op_num_threads": True}}), "must be a whole number"),
        (lambda d: json.dumps(d | {"settings": {"config": {"a": 1}}}), "must be an object of texts"),
    ],
)
def test_a_malformed_file_is_one_clear_error(path: Path, change, says: str) -> None:
    where = sessions.write_settings(path, SETTINGS, TARGET, SPEED)
    where.write_text(change(json.loads(where.read_text())))
    with pytest.raises(GraphoptError, match=f"fast.session.json: .*{says}"):
        graphopt.session(path)


def test_what_is_no_file_of_settings_is_not_replaced(path: Path) -> None:
    sessions.check_settings_path(path)
    where = sessions.write_settings(path, SETTINGS, TARGET, SPEED)
    sessions.check_settings_path(path)
    where.write_text('{"mine": 1}')
    with pytest.raises(OutputError, match=r"stands where the settings of fast\.onnx go"):
        sessions.check_settings_path(path)
