"""A run on torch modules, to ONNX and to `.pt2`: every recipe, and the nets whose published weights are in the zoo."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest

torch = pytest.importorskip("torch")

from graphopt.programs.capture import capture  # noqa: E402
from graphopt.programs.run import ProgramRun  # noqa: E402
from graphopt.reporting.progress import Progress  # noqa: E402
from graphopt.request import Request, plan  # noqa: E402
from graphopt.workbench import Stages  # noqa: E402
from models.recipes import RECIPES  # noqa: E402
from models.zoo import NETS, build_net  # noqa: E402
from tests.support import ops  # noqa: E402

#: BatchNorms with no convolution right before them: in CREPE a ReLU stands between.
APART = {"crepe_full": 6, "crepe_tiny": 6}


@cache
def _captured(name: str) -> Any:
    recipe = RECIPES.get(name)
    if recipe is not None:
        return capture(recipe.build(small=True), recipe.example_inputs(), outputs=recipe.outputs)
    built = build_net(name)
    return capture(built.module, built.inputs, dynamic_shapes=built.dynamic, outputs=built.outputs)


def check(name: str, destination: Path) -> dict[str, Any]:
    request = Request(Path(name), bench=False)
    _, pipeline = plan(request)
    result = ProgramRun(request, pipeline, destination, Stages(Progress(quiet=True))).on(lambda: _captured(name))
    report = result.report.to_dict()
    verification = report["verification"]
    assert result.exit_code == 0, report["warnings"]
    assert verification["verdict"] in ("identical", "equivalent") and verification["informative"] >= 1
    assert len({json.dumps(s, sort_keys=True) for s in verification["sizes"]}) >= 2
    assert [(p["name"], p["note"]) for p in report["passes"] if p["status"] in ("failed", "rolled-back")] == []
    return report


def norms_left(report: dict[str, Any]) -> int:
    operators = report.get("program", report["after"])["operators"]
    return sum(count for name, count in operators.items() if "batch_norm" in name)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, suffix: str, tmp_path: Path) -> None:
    report = check(name, tmp_path / f"out{suffix}")
    assert norms_left(report) == 0
    if suffix == ".onnx":
        assert "BatchNormalization" not in ops(onnx.load(tmp_path / "out.onnx"))
        assert report["after"]["nodes"] <= report["exported"]["nodes"]


@pytest.mark.zoo
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", NETS)
def test_net_of_the_zoo(name: str, suffix: str, tmp_path: Path) -> None:
    report = check(name, tmp_path / f"out{suffix}")
    assert norms_left(report) <= APART.get(name, 0)
