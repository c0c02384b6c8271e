"""The JSON of a report: the keys that scripts rely on."""

import json
import math

import numpy as np
import pytest

from graphopt.reporting import PassRecord, Refusal, Report
from graphopt.reporting.report import plain


def make(**changes):
    numbers = {"nodes": 3, "bytes": 1000, "parameters": 12, "operators": {"Conv": 2, "Relu": 1}}
    values = {
        "model": {"path": "m.onnx", "kind": "onnx", "opset": 17, "inputs": [], "outputs": []},
        "target": {"provider": "cpu", "device": "x", "threads": 2, "isa": "avx2"},
        "before": numbers,
        "after": numbers | {"nodes": 2},
        "passes": [PassRecord("p", "exact", 1, [Refusal("n", "why")], 3, 2, 0.123456789, "kept")],
    }
    return Report(**(values | changes))


def test_keys_and_their_order():
    made = json.loads(make().to_json())
    contract = [
        "version",
        "model",
        "output",
        "target",
        "before",
        "after",
        "passes",
        "verification",
        "speed",
        "quality",
        "seconds",
        "peak_rss_bytes",
    ]
    assert list(made)[: len(contract)] == contract
    assert list(made["model"]) == ["path", "kind", "opset", "inputs", "outputs"]
    assert list(made["target"]) == ["provider", "device", "threads", "isa"]
    assert list(made["before"]) == list(made["after"]) == ["nodes", "bytes", "parameters", "operators"]
    first = made["passes"][0]
    assert list(first)[:8] == ["name", "effect", "applied", "refused", "nodes_before", "nodes_after", "seconds", "status"]
    assert first["refused"] == [{"node": "n", "reason": "why"}]
    assert list(made["seconds"]) == ["load", "passes", "verify", "bench", "save"]
    assert made["output"] is made["verification"] is made["speed"] is made["quality"] is None
    assert made["version"][0].isdigit()


def test_the_same_report_is_the_same_text():
    assert make(peak_rss_bytes=1).to_json() == make(peak_rss_bytes=1).to_json()


def test_peak_memory_is_this_process_in_bytes():
    block = np.ones(30_000_000)  # 240 MB
    peak = make().to_dict()["peak_rss_bytes"]
    assert 240_000_000 < peak < 64_000_000_000
    assert block.sum() == 30_000_000


def test_floats():
    speed = {
        "ratio": 1.23456789,
        "low": math.nan,
        "high": math.inf,
        "pairs": np.int64(4),
        "x": np.float32(0.1),
        "y": np.array([1.0, -math.inf]),
    }
    made = json.loads(make(speed=speed).to_json())["speed"]
    assert made == {"ratio": 1.23457, "low": None, "high": None, "pairs": 4, "x": 0.1, "y": [1.0, None]}


def test_plain_values():
    assert plain({1: {3, 2}, "b": (True, None)}) == {"1": [2, 3], "b": [True, None]}
    assert plain(1e-12) == 1e-12 and plain(np.bool_(True)) is True


def test_extra_keys_are_added_and_never_replace():
    assert make(extra={"provenance": {"n": ["a"]}}).to_dict()["provenance"] == {"n": ["a"]}
    with pytest.raises(ValueError, match="speed"):
        make(extra={"speed": 1}).to_dict()


def test_seconds_of_stages():
    assert make(seconds={"passes": 1.5, "tune": 2.0}).to_dict()["seconds"] == {
        "load": 0.0, "passes": 1.5, "verify": 0.0, "bench": 0.0, "save": 0.0, "tune": 2.0,
    }  # fmt: skip
