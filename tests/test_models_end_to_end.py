"""`graphopt run` on real models: the public zoo, and every recipe from every exporter, without any samples given."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest

from graphopt.request import Request
from graphopt.run import Result, optimize
from models.recipes import HOWS, RECIPES, export
from models.zoo import MODELS, feeds, fetch, has_alt
from tests.support import REGISTRY, ops

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="exporting needs torch")
# One of each exporter is quick enough for the default run.
QUICK = {("resnet18", "legacy"), ("lstm", "legacy"), ("llama_like", "legacy")}


def check(path: Path, target: Path, dynamic: bool) -> Result:
    result = optimize(Request(path, target, bench=False))
    report = result.report.to_dict()
    verification = report["verification"]
    assert result.exit_code == 0, report["warnings"]
    assert verification["verdict"] in ("identical", "equivalent")
    assert verification["informative"] >= 1
    assert len({json.dumps(s, sort_keys=True) for s in verification["sizes"]}) >= (2 if dynamic else 1)
    assert [(p["name"], p["note"]) for p in report["passes"] if p["status"] in ("failed", "rolled-back")] == []
    assert report["after"]["bytes"] <= 1.02 * report["before"]["bytes"]
    # A pass may write more nodes where that is faster: then it says that measuring decides on it.
    longer = sum(max(0, p["nodes_after"] - p["nodes_before"]) for p in report["passes"] if REGISTRY.get(p["name"]).measured)
    assert report["after"]["nodes"] <= report["before"]["nodes"] + longer
    return result


@pytest.mark.zoo
@pytest.mark.parametrize("name", MODELS)
def test_zoo(name: str, tmp_path: Path) -> None:
    result = check(fetch(name), tmp_path / "out.onnx", has_alt(name))
    folded = {p.name: p.applied for p in result.report.passes}["fuse-conv-bn"]
    norms = {"effnet_lite0_dynamo_raw": 49, "effnet_lite0_legacy_bn": 49, "ppocrv2_cls": 35, "ppocrv4_rec": 6}.get(name, 0)
    assert folded >= norms
    if norms:
        assert "BatchNormalization" not in ops(onnx.load(result.report.output))


@pytest.mark.zoo
@pytest.mark.parametrize("name", [name for name in MODELS if has_alt(name)])
def test_zoo_on_plausible_inputs(name: str, tmp_path: Path) -> None:
    """The result agrees on inputs that verification did not choose, at both sizes."""
    from graphopt.verification import Reference, Sample, verify

    path, target = fetch(name), tmp_path / "out.onnx"
    optimize(Request(path, target, verify="off", bench=False))
    samples = [Sample(feeds(name, seed=11, alt=alt), f"alt={alt}") for alt in (False, True)]
    assert verify(path, target, samples, reference=Reference(path), coverage=False).verdict in ("identical", "equivalent")


def _recipes() -> list[object]:
    return [pytest.param(name, how, marks=() if (name, how) in QUICK else pytest.mark.slow) for name in RECIPES for how in HOWS]


@needs_torch
@pytest.mark.parametrize(("name", "how"), _recipes())
def test_recipe(name: str, how: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    path = export(recipe, tmp_path / "model.onnx", how, small=True)
    result = check(path, tmp_path / "out.onnx", bool(recipe.dynamic(how)))
    left = ops(onnx.load(result.report.output))
    if name not in ("unet", "repvgg_a0"):
        assert "BatchNormalization" not in left
