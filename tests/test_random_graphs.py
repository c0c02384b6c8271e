"""Random graphs through the presets, compared with ONNX Runtime without its optimizations; `python -m tests.fuzz` runs for longer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.fuzz import check
from tests.fuzz.__main__ import run
from tests.support import array, assert_same, model, node

PRESETS = ("clean", "default", "ort")


def branches() -> onnx.ModelProto:
    """One weight under several convolutions, values that are outputs too, an If that captures, duplicates."""
    from onnx import helper

    def branch(name: str, op_type: str) -> onnx.GraphProto:
        made = [node(op_type, ["b"], [f"{name}_t"]), node("BatchNormalization", [f"{name}_t", "s", "z", "z", "s"], [f"{name}_y"])]
        return helper.make_graph(made, name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)])

    nodes = [
        node("Conv", ["x", "w"], ["a"]), node("BatchNormalization", ["a", "s", "z", "z", "s"], ["b"]),
        node("Conv", ["x", "w"], ["a2"]), node("BatchNormalization", ["a2", "s", "z", "z", "s"], ["b2"]),
        node("Identity", ["b"], ["out1"]), node("Add", ["b", "b2"], ["out2"]),
        node("If", ["cond"], ["out3"], then_branch=branch("then", "Relu"), else_branch=branch("else", "Neg")),
    ]
    weights = {"w": array(4, 4, 1, 1), "s": array(4, low=0.5), "z": array(4, seed=3)}
    shape = [1, 4, 5, 5]
    types = {"cond": onnx.TensorProto.BOOL}
    return model(nodes, {"x": shape, "cond": []}, dict.fromkeys(("out1", "out2", "out3"), shape), weights, types=types)


def test_branches(tmp_path: Path) -> None:
    before = branches()
    after, candidate = check.optimized(before, check.presets(["default"])["default"], tmp_path)
    assert [r.note for r in candidate.runs if r.status == "failed"] == []
    for cond in (True, False):
        assert_same(before, after, {"x": array(1, 4, 5, 5), "cond": np.asarray(cond)})


@pytest.mark.parametrize("first", [0, 10_000, 20_000, 30_000])
def test_random_graphs(first: int, tmp_path: Path) -> None:
    """Right answers, and a second run that changes nothing."""
    checked, rejected, findings = run(600, first, tmp_path, PRESETS, limit=25, stop=1)
    assert not findings, findings[0].text
    assert checked == 25 and rejected < 5


@pytest.mark.slow
def test_fuzz(tmp_path: Path) -> None:
    """Minutes by the environment variable GRAPHOPT_FUZZ_MINUTES, the first seed by GRAPHOPT_FUZZ_SEED; reproducers go to build/fuzz."""
    minutes = float(os.environ.get("GRAPHOPT_FUZZ_MINUTES", "10"))
    seed = int(os.environ.get("GRAPHOPT_FUZZ_SEED", "100000"))
    checked, rejected, findings = run(60 * minutes, seed, Path("build/fuzz"), PRESETS)
    print(f"{checked} models checked under {', '.join(PRESETS)} in {minutes:g} minutes, {rejected} turned down, {len(findings)} findings")
    said = [f"seed {f.seed}: {f.kind}: {f.text}" for f in findings]
    print("\n".join(said))
    # That a second run finds more to do is a blemish, which `test_confluence` holds elsewhere; a wrong answer is no blemish.
    unsettled = [f for f in findings if f.kind == "unsettled"]
    assert len(unsettled) == len(findings), said
    assert len(unsettled) <= 1 + checked // 500, said
    assert checked >= 50 * minutes and rejected < checked // 5


def test_a_wrong_answer_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pass that is wrong does not get through: it is named, and what reproduces it is written."""
    from graphopt.passes.algebra import fuse_conv_bn

    right = fuse_conv_bn.read_bn
    monkeypatch.setattr(fuse_conv_bn, "read_bn", lambda *a, **k: tuple(1.01 * part for part in right(*a, **k)))
    _, _, findings = run(600, 0, tmp_path, ("default",), limit=60, stop=1)
    assert findings and findings[0].kind == "wrong" and "fuse-conv-bn" in findings[0].passes
    assert {p.suffix for p in tmp_path.iterdir()} >= {".onnx", ".npz", ".txt"}
