"""`graphopt convert`: what it writes, what it prints, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Cli
from tests.support import array, model, node

torch = pytest.importorskip("torch")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    nodes = [
        node("Conv", ["x", "conv.weight"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Shape", ["r"], ["s"]),
        node("Slice", ["s", "zero", "two"], ["front"]),
        node("Concat", ["front", "minus"], ["target"], axis=0),
        node("Reshape", ["r", "target"], ["y"]),
    ]
    numbers = {"zero": [0], "two": [2], "minus": [-1]}
    weights = {"conv.weight": array(3, 2, 3, 3)} | {k: np.array(v, np.int64) for k, v in numbers.items()}
    path = tmp_path / "net.onnx"
    onnx.save(model(nodes, {"x": ["batch", 2, "height", "width"]}, {"y": ["batch", 3, "pixels"]}, weights), path)
    return path


def test_a_program_with_the_dims_of_the_model(cli: Cli, net: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.pt2"
    done = cli("convert", net, "-o", out, "--json")
    assert done.code == 0
    assert done.json["verification"]["verdict"] in ("identical", "equivalent")
    assert len(done.json["verification"]["sizes"]) >= 2
    assert set(done.json["dynamic"]) == {"batch", "height", "width"} and done.json["fixed"] == {}
    assert done.json["output"] == str(out) and done.json["tensors"] == {"conv.weight": "conv.weight"}
    program = torch.export.load(out)
    assert program.module()(torch.ones(1, 2, 5, 7)).shape == (1, 3, 35)
    assert list(program.state_dict) == ["conv.weight"]


def test_the_report_in_words(cli: Cli, net: Path, tmp_path: Path) -> None:
    done = cli("convert", net, "-o", tmp_path / "net.pt2")
    assert done.code == 0
    assert "net.pt2" in done.out and "dim 'batch' is dynamic" in done.out and "54 parameters" in done.out


def test_what_cannot_be_imported_is_told_in_one_line(cli: Cli, tmp_path: Path) -> None:
    path, out = tmp_path / "odd.onnx", tmp_path / "odd.pt2"
    nodes = [node("Relu", ["x"], ["a"]), node("Bernoulli", ["a"], ["y"])]
    onnx.save(model(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}), path)
    done = cli("convert", path, "-o", out)
    assert done.code == 2 and done.err.count("\n") == 1 and not out.exists()
    assert str(path) in done.err and "Bernoulli of ai.onnx version 17" in done.err


@pytest.mark.parametrize("name", ["net.onnx", "net.pth", "net"])
def test_only_programs_are_written(cli: Cli, net: Path, tmp_path: Path, name: str) -> None:
    before = net.read_bytes()
    done = cli("convert", net, "-o", tmp_path / name)
    assert done.code == 2 and "names end in .pt2" in done.err
    assert net.read_bytes() == before


def test_no_folder(cli: Cli, net: Path, tmp_path: Path) -> None:
    assert cli("convert", net, "-o", tmp_path / "none" / "net.pt2").code == 2


def test_without_torch(cli: Cli, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    done = cli("convert", net, "-o", tmp_path / "net.pt2")
    assert done.code == 2 and "pip install 'graphopt[torch]'" in done.err
