"""The pipeline comes to an end of its own: a second run changes nothing, and the order of independent passes decides nothing."""

from __future__ import annotations

import collections
import dataclasses
import random
from pathlib import Path

import onnx
import pytest

from graphopt.formats import load_model, save_model
from graphopt.measurement.runtime_graph import signature
from graphopt.pipeline.presets import Pipeline, load_preset
from graphopt.pipeline.runner import run_pipeline
from models.zoo import MODELS, fetch
from tests.chain import chain
from tests.fuzz.blocks import build
from tests.support import REGISTRY

PRESETS = ("clean", "default", "ort")
ROUNDS = 12  # a bad order takes longer to come to the same end


def optimize(source: Path, target: Path, pipeline: Pipeline) -> list[str]:
    """Run a pipeline from file to file; the passes that changed something."""
    candidate = run_pipeline(lambda: load_model(source), pipeline)
    failed = [f"{r.name}: {r.note}" for r in candidate.runs if r.status == "failed"]
    assert not failed, failed
    save_model(candidate.model, target)
    return sorted({a.pass_name for a in candidate.applications})


def settles(source: Path, folder: Path, preset: str) -> None:
    pipeline = load_preset(preset, REGISTRY)
    first, second = folder / f"{preset}.1.onnx", folder / f"{preset}.2.onnx"
    optimize(source, first, pipeline)
    assert optimize(first, second, pipeline) == []
    assert first.read_bytes() == second.read_bytes()


# --- a second run -----------------------------------------------------------------------------------------------------


@pytest.mark.zoo
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", MODELS)
def test_a_second_run_over_a_public_model(name: str, preset: str, tmp_path: Path) -> None:
    settles(fetch(name), tmp_path, preset)


def _exports() -> list[object]:
    from models.recipes import HOWS, RECIPES

    quick = {(name, "legacy") for name in ("resnet18", "bert_base", "lstm")}
    return [pytest.param(n, h, marks=() if (n, h) in quick else pytest.mark.slow) for n in RECIPES for h in HOWS]


@pytest.mark.parametrize(("name", "how"), _exports())
def test_a_second_run_over_a_recipe(name: str, how: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from models.recipes import RECIPES, export

    source = export(RECIPES[name], tmp_path / "model.onnx", how, small=True)
    for preset in PRESETS:
        settles(source, tmp_path, preset)


def test_a_second_run_over_the_chain(tmp_path: Path) -> None:
    chain(20, tmp_path / "chain.onnx")
    for preset in PRESETS:
        settles(tmp_path / "chain.onnx", tmp_path, preset)


# Random graphs go through a second run in test_random_graphs.py.

# --- another order ----------------------------------------------------------------------------------------------------


def _of_one_stage(preset: str) -> Pipeline:
    """A preset without the passes that choose among equals: where Transposes end up depends on what stands there before."""
    pipeline = load_preset(preset, REGISTRY).mapped(lambda step: None if "transpose" in step.name else step)
    assert len(pipeline.stages) == 1
    return pipeline


def _reordered(pipeline: Pipeline, steps: list) -> Pipeline:
    return dataclasses.replace(pipeline, stages=(dataclasses.replace(pipeline.stages[0], steps=tuple(steps), rounds=ROUNDS),))


def _end(source: Path, pipeline: Pipeline, target: Path) -> tuple[collections.Counter[str], int, bytes]:
    """Operators, bytes to within what names take, and structure of what a pipeline ends with."""
    optimize(source, target, pipeline)
    made = onnx.load(target)
    return collections.Counter(n.op_type for n in made.graph.node), round(len(made.SerializeToString()) / 500), signature(made)


@pytest.mark.parametrize("seed", range(12))
def test_the_order_of_the_clean_up_decides_nothing(seed: int, tmp_path: Path) -> None:
    order, pipeline = random.Random(seed), _of_one_stage("clean")
    onnx.save(build(seed).model(), tmp_path / "in.onnx")
    wanted = _end(tmp_path / "in.onnx", _reordered(pipeline, list(pipeline.steps)), tmp_path / "a.onnx")
    for _ in range(3):
        steps = list(pipeline.steps)
        order.shuffle(steps)
        got = _end(tmp_path / "in.onnx", _reordered(pipeline, steps), tmp_path / "b.onnx")
        assert got[0] == wanted[0] and got[2] == wanted[2] and abs(got[1] - wanted[1]) <= 1, [s.name for s in steps]


@pytest.mark.parametrize("seed", range(100, 112))
def test_two_passes_that_change_places_decide_nothing(seed: int, tmp_path: Path) -> None:
    order, pipeline = random.Random(seed), _of_one_stage("default")
    onnx.save(build(seed).model(), tmp_path / "in.onnx")
    wanted = _end(tmp_path / "in.onnx", _reordered(pipeline, list(pipeline.steps)), tmp_path / "a.onnx")
    for _ in range(3):
        steps = list(pipeline.steps)
        for i in order.sample(range(len(steps) - 1), 3):
            steps[i], steps[i + 1] = steps[i + 1], steps[i]
        got = _end(tmp_path / "in.onnx", _reordered(pipeline, steps), tmp_path / "b.onnx")
        assert got[0] == wanted[0] and got[2] == wanted[2] and abs(got[1] - wanted[1]) <= 1, [s.name for s in steps]
