"""Recipes: every one builds, is the same each time, exports, and ONNX Runtime agrees with eager torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.recipes import HOWS, RECIPES, export
from models.recipes.__main__ import main
from tests.models.graphs import in_inference, norms, run

torch = pytest.importorskip("torch")

# BatchNorms, and those right behind a convolution, where an exporter keeps them.
NORMS = {
    "resnet18": (20, 20),
    "resnet50": (53, 53),
    "mobilenet_v2": (52, 52),
    "efficientnet_b0": (49, 49),
    "repvgg_a0": (61, 44),
    "unet": (22, 22),
}

# Each exporter, and each kind of net, once; the rest is slow, a torch.export taking about ten seconds.
QUICK = {("resnet18", "dynamo-raw"), ("lstm", "dynamo")} | {(name, "legacy") for name in RECIPES}


def _cases() -> list[object]:
    return [pytest.param(name, how, marks=() if (name, how) in QUICK else pytest.mark.slow) for name in RECIPES for how in HOWS]


@pytest.mark.parametrize(("name", "how"), _cases())
def test_export_agrees_with_eager(name: str, how: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    path = export(recipe, tmp_path / "model.onnx", how, small=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    assert [value.name for value in graph.input if value.name not in constants] == list(recipe.inputs)
    assert [value.name for value in graph.output] == list(recipe.outputs)
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, symbol in recipe.dynamic(how).get(value.name, {}).items():
            assert dims[axis].dim_param == symbol

    found, behind = norms(graph)
    assert all(in_inference(node) for node in found)
    if how != "dynamo":
        assert (len(found), behind) == NORMS.get(name, (0, 0))
    else:
        assert behind == 0

    module = recipe.build(small=True)
    for size in ("small", "medium"):
        inputs = recipe.example_inputs(3, size, how)
        with torch.no_grad():
            expected = module(**inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        got = run(path, {key: tensor.numpy() for key, tensor in inputs.items()})
        for value, output in zip(expected, recipe.outputs, strict=True):
            # Alive, in range, and the same function.
            assert 0.05 < float(value.std()) < 10
            np.testing.assert_allclose(got[output], value.numpy(), rtol=1e-4, atol=1e-4)


def test_weights_are_seeded_and_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = RECIPES["unet"].build(small=True).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = RECIPES["unet"].build(small=True).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    variances = [value for key, value in first.items() if key.endswith("running_var")]
    assert variances and all(float(value.std()) > 0.1 for value in variances)


def test_small_keeps_the_structure() -> None:
    for name in ("resnet50", "repvgg_a0"):
        full, small = (RECIPES[name].build(small=flag) for flag in (False, True))
        assert [type(part) for part in full.modules()] == [type(part) for part in small.modules()]
        assert sum(p.numel() for p in small.parameters()) < 0.1 * sum(p.numel() for p in full.parameters())


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, models.recipes, models.zoo, models.exporting; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "vit.onnx"
    assert main(["vit_tiny", "legacy", str(out), "--small"]) == 0
    assert out.is_file() and str(out) in capsys.readouterr().out


def test_a_failed_export_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", broken)
    assert main(["lstm", "legacy", str(tmp_path / "lstm.onnx")]) == 2
    assert capsys.readouterr().err == "error: lstm: legacy: no such operator\n"
    assert not list(tmp_path.iterdir())


def test_unknown_exporter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown exporter 'tvm'"):
        export(RECIPES["lstm"], tmp_path / "lstm.onnx", "tvm")
