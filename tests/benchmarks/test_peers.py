"""The comparison with other tools: what counts as falling short, and what a size is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.peers import tools
from benchmarks.peers.measure import size
from benchmarks.peers.models import recipes
from benchmarks.peers.table import shortfalls, summary, table
from tests.support import model, node


def speed(ratio: float, spread: float = 0.005) -> dict:
    return {"ratio": ratio, "low": ratio - spread, "high": ratio + spread}


def result(nodes: int, ratio: float, **more) -> dict:
    found = {"status": "ok", "error": "", "seconds": 1.0, "nodes": nodes, "bytes": 100, "verdict": "equivalent"}
    return {**found, "speed": {"1": speed(ratio)}, **more}


def row(**by_tool: dict) -> dict:
    return {"model": "m", "original": {"nodes": 50, "bytes": 100}, "tools": by_tool}


def test_the_two_samples_of_a_recipe_differ_where_its_size_is_fixed(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "vit_tiny.dynamo.onnx").touch()
    (case,) = recipes(tmp_path)
    one, other = case.feeds(0)["image"], case.feeds(1)["image"]
    assert one.shape == other.shape and not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (result(10, 1.1), []),
        (result(10, 0.97), ["m, graphopt: 1 threads: 0.970 (0.965 to 0.975) of the original"]),
        (result(10, 0.99), []),
        (result(10, 0.97, speed={"1": speed(0.97, 0.02)}), []),
        (result(10, 1.0, bytes=103), ["m, graphopt: 103 bytes of 100"]),
        (result(13, 1.0), ["m, graphopt: 13 nodes, onnxsim has 12"]),
        (result(10, 1.0, verdict="different"), ["m, graphopt: ok different"]),
        (
            result(10, 1.0, against_best={"1": {"tool": "onnxslim", **speed(0.9)}}),
            ["m, graphopt: 1 threads: 0.900 (0.895 to 0.905) of onnxslim"],
        ),
    ],
)
def test_what_falls_short(mine: dict, said: list[str]) -> None:
    # The result with operators of ONNX Runtime's own is no measure of a portable one, and a wrong one is none at all.
    rows = [row(onnxsim=result(12, 1.0), onnxslim=result(3, 2.0, verdict="different"), ort_extended=result(5, 1.0), graphopt=mine)]
    assert shortfalls(rows, [1]) == said


def test_the_preset_for_onnx_runtime_is_held_to_its_own_optimizer() -> None:
    rows = [row(ort_extended=result(5, 1.0), graphopt=result(10, 1.0), graphopt_ort=result(6, 1.0))]
    assert shortfalls(rows, [1]) == ["m, graphopt_ort: 6 nodes, ort_extended has 5"]


def test_tables() -> None:
    crash = {"status": "crash", "seconds": 1.0, "error": "no"}
    same = result(12, 1.0, speed={"1": {**speed(1.0), "same": True}})
    rows = [row(onnxsim=crash, onnxslim=same, graphopt=result(10, 1.25))]
    assert table(rows, [1]).splitlines()[-1] == "| m | 50 | crash | 12: = | 10: 1.25 |"
    noisy = [row(graphopt=result(10, 1.25, speed={"1": speed(1.25, 0.2)}))]
    assert table(noisy, [1]).splitlines()[-1] == "| m | 50 | 10: ~1.25 |"
    assert summary(rows, [1]).splitlines()[2:] == [
        "| onnxsim | 0 | 0 | 1 | 0 of 0 | 0 |", "| onnxslim | 1 | 0 | 0 | 0 of 1 | 0 |", "| graphopt | 1 | 0 | 0 | 1 of 1 | 0 |",
    ]  # fmt: skip


def test_size_counts_subgraphs_and_leaves_constants_apart(tmp_path: Path) -> None:
    nodes = [node("Constant", [], ["c"], value_float=1.0), node("Neg", ["x"], ["n"])]
    branch = onnx.helper.make_graph(nodes, "b", [], [onnx.helper.make_tensor_value_info("n", 1, [3])])
    made = model([node("If", ["k"], ["y"], then_branch=branch, else_branch=branch)], {"x": [3]}, ["y"], {"k": np.asarray(True)})
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    assert size(path) == {"nodes": 3, "constants": 2, "bytes": path.stat().st_size}


def test_every_tool_is_run_by_the_script_in_the_other_environment() -> None:
    script = tools.RUN_TOOL.read_text(encoding="utf-8")
    for tool in tools.TOOLS.values():
        assert tool.preset is not None or f"\ndef {tool.name}(source, target" in script
    assert tools.applies(tools.TOOLS["ort_transformers"], "minilm_l6_fp32_dynamo")
    assert not tools.applies(tools.TOOLS["ort_transformers"], "resnet18.legacy")
