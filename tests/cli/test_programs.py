"""Torch models on the command line: what comes out, what is said of bad ones, and what is said without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

torch = pytest.importorskip("torch")

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image):
        return self.norm(self.conv(image)).mean((2, 3))

def make():
    torch.manual_seed(0)
    return Net().eval(), (torch.randn(2, 3, 8, 8),), {"image": {0: "batch"}}

def training():
    return Net(), (torch.randn(2, 3, 8, 8),)

def raises():
    raise KeyError("no weights here")

def nothing():
    return 7

def lacks():
    return Net().eval(), ()

def wrong_shape():
    return Net().eval(), (torch.randn(2, 5, 8, 8),)

class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

def branching():
    return Branching().eval(), (torch.randn(2, 3),)
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "net.py"


def test_a_factory_becomes_onnx_and_pt2(cli: Cli, net: str, tmp_path: Path) -> None:
    done = cli("run", f"{net}:make", "--no-bench", "--passes", "fuse-conv-bn", "--explain", "fuse-conv-bn", "--threads", 1, "--json")
    assert done.code == 0, done.err
    assert done.json["output"] == "make.opt.onnx" and (tmp_path / "make.opt.onnx").exists()
    assert done.json["model"]["path"] == "net.py:make" and done.json["model"]["kind"] == "torch"
    assert [a["pass"] for a in done.json["applications"]] == ["fuse-conv-bn"]
    assert cli("run", f"{net}:make", "-o", "m.pt2", "--no-bench", "--passes", "prune-dead-nodes", "-q").code == 0
    text = cli("run", "m.pt2", "--no-bench", "--passes", "fuse-conv-bn", "--report", "r.html", "--report", "r.json")
    assert text.code == 0 and "Written to  m.opt.pt2" in text.out and "fuse-conv-bn" in Path("r.html").read_text(encoding="utf-8")
    assert cli("inspect", "m.opt.pt2", "--json").json["operators"] == {"aten.conv2d.default": 1, "aten.mean.dim": 1}
    assert "Operators         1  aten.conv2d.default" in cli("inspect", "m.opt.pt2").out
    for b in ("make.opt.onnx", "m.opt.pt2"):
        assert cli("verify", f"{net}:make", b, "-q").code == 0
    refused = cli("run", "m.pt2", "-o", "m.pt2", "--no-bench")
    assert refused.code == 2 and "is the model itself" in refused.err
    before = Path("m.pt2").read_bytes()
    assert cli("run", "m.pt2", "--in-place", "--no-bench", "--passes", "fuse-conv-bn", "-q").code == 0
    assert Path("m.pt2").read_bytes() != before


def test_export_alone(cli: Cli, net: str) -> None:
    done = cli("export", f"{net}:make", "-o", "m.onnx", "--json")
    assert done.code == 0 and done.json["verification"]["verdict"] == "equivalent" and Path("m.onnx").exists()
    assert done.json["model"]["inputs"][0]["shape"] == ["batch", 3, 8, 8]
    done = cli("export", f"{net}:training", "-o", "m.pt2", "--eval", "--no-verify")
    assert done.code == 0 and done.out.endswith("written to m.pt2\n")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("net.py:training", "the module is in training mode: call .eval()"),
        ("net.py:raises", "KeyError: 'no weights here', at "),
        ("net.py:nothing", "net.py:nothing: returned a int"),
        ("net.py:lacks", "the example inputs do not fit forward"),
        ("net.py:wrong_shape", "RuntimeError: "),
        ("net.py:branching", "(if x.sum() > 0:): what happens next depends on a value"),
        ("net.py:none", "net.py has no 'none'"),
        ("nut.py:make", "there is no file nut.py"),
        ("no.such.module:make", "there is no module 'no'"),
        ("missing.pt2", "missing.pt2: no such file"),
    ],
)
def test_bad_factories_are_one_line(cli: Cli, net: str, factory: str, said: str) -> None:
    done = cli("run", factory, "-o", "out.onnx", "--no-bench")
    assert done.code == 2 and not Path("out.onnx").exists()
    assert done.err.startswith("graphopt: error: ") and done.err.count("\n") == 1
    assert said in done.err


def test_commands_that_work_on_onnx_alone_say_so(cli: Cli, ok: Path) -> None:
    for command in (("bench", "m.pt2"), ("diff", "m.pt2", ok), ("bisect", "m.pt2"), ("verify", ok, "m.pt2")):
        done = cli(*command)
        assert done.code == 2 and "m.pt2: is a torch program" in done.err and "graphopt export" in done.err
    assert "--compile: only a torch model" in cli("run", ok, "--compile").err
    done = cli("export", ok, "-o", "x.onnx")
    assert done.code == 2 and "neither MODULE:FACTORY nor a .pt2" in done.err


BLOCKED = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith("torch."):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Block())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else real(name, package)
"""


def without_torch(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, cwd=folder, env=environment, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "net.py:make"],
        ["run", "m.pt2", "-o", "m.onnx"],
        ["export", "net.py:make", "-o", "m.onnx"],
        ["inspect", "m.pt2"],
        ["verify", "m.pt2", "m.onnx"],
    ],
)
def test_without_torch_every_entry_says_what_to_install(arguments: list[str], net: str, tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"PK")
    done = without_torch(f"from graphopt.cli.entry import invoke\nsys.exit(invoke({arguments!r}))", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "need torch, which is not installed: pip install 'graphopt[torch]'" in done.stderr


def test_from_python_without_torch(tmp_path: Path) -> None:
    code = "import graphopt\ntry:\n    graphopt.optimize('net.py:make')\nexcept graphopt.InputError as error:\n    print(error)"
    assert "pip install 'graphopt[torch]'" in without_torch(code, tmp_path).stdout
