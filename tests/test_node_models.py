"""The ONNX backend node-test models through the presets `default` and `ort`: the outputs stay those that the standard expects."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

from graphopt.formats import load_model, save_model
from graphopt.pipeline.presets import load_preset
from graphopt.pipeline.runner import run_pipeline
from tests.support import REGISTRY

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the generators of the cases divide by zero on purpose
    CASES = {case.name: case for case in load_model_tests(kind="node")}

# Their expected outputs are drawn at random: there is nothing to compare.
_RANDOM = ("bernoulli", "training_dropout")


@functools.cache
def _pipeline(preset: str):
    return load_preset(preset, REGISTRY)  # passes for other providers too: CPUs have kernels for what they write


def _own_passes() -> set[str]:
    """What the preset `ort` has beyond the default."""
    return {step.name for step in _pipeline("ort").steps} - {step.name for step in _pipeline("default").steps}


def _evaluator(proto: onnx.ModelProto):
    """ONNX Runtime with its optimizations off, or the reference implementation for what it does not run; None: neither."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)
    except Exception:
        try:
            reference = ReferenceEvaluator(proto)
        except Exception:
            return None
        return lambda feeds: reference.run(None, feeds)


def _answer(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any] | None:
    run = _evaluator(proto)
    try:
        return None if run is None else run(feeds)
    except Exception:
        return None


def _close(want: Any, got: Any) -> None:
    if isinstance(want, list | tuple):
        assert len(want) == len(got)
        for w, g in zip(want, got):
            _close(w, g)
        return
    if want is None or got is None:
        assert want is None
        assert got is None
        return
    want, got = np.asarray(want), np.asarray(got)
    assert want.shape == got.shape
    if want.dtype.kind in "fc":
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * float(np.abs(want[np.isfinite(want)]).max(initial=1.0)))
    else:
        np.testing.assert_array_equal(got, want)


def test_there_are_well_over_a_thousand() -> None:
    assert len(CASES) > 1300


@pytest.mark.parametrize("preset", ["default", "ort"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_outputs_stay(name: str, preset: str, tmp_path: Path) -> None:
    case = CASES[name]
    source, target = tmp_path / "model.onnx", tmp_path / "result.onnx"
    source.write_bytes(case.model.SerializeToString())
    candidate = run_pipeline(lambda: load_model(source), _pipeline(preset))
    assert [r.name for r in candidate.runs if r.status == "failed"] == [], [r.note for r in candidate.runs if r.note]
    if preset != "default" and not _own_passes() & {a.pass_name for a in candidate.applications}:
        return  # the default's result, which is compared under its own name
    save_model(candidate.model, target)
    result = onnx.load(target)
    assert [o.name for o in result.graph.output] == [o.name for o in case.model.graph.output]
    assert list(result.graph.input) == list(case.model.graph.input)
    if not candidate.changed or any(word in name for word in _RANDOM):
        return
    for inputs, expected in case.data_sets:
        feeds = dict(zip([i.name for i in case.model.graph.input], inputs))
        original = _answer(case.model, feeds)
        if original is None:
            continue  # neither evaluator knows the operator
        answer = _answer(result, feeds)
        assert answer is not None, "the original runs and the result does not"
        _close(original, answer)
        del expected  # the original's own answer is the stricter measure: the runtime may differ from the standard
