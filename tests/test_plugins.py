"""Plug-ins: the worked example of the documents, the skeleton, and everything that can be wrong with one."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from graphopt.cli.entry import invoke
from graphopt.errors import OptionError, OutputError, PluginError
from graphopt.pipeline.registry import Registry
from graphopt.plugins import write_skeleton
from tests.support import array, assert_same, model, node, ops

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")


def example(name: str = "example") -> str:
    """The code of the worked example, or of another."""
    return re.search(rf"<!-- {name} -->\n```python\n(.*?)```", DOCUMENT, re.DOTALL)[1]


def division() -> onnx.ModelProto:
    nodes = [node("Div", ["x", "four"], ["a"]), node("Div", ["a", "three"], ["b"]), node("Relu", ["b"], ["y"])]
    return model(nodes, {"x": [2, 3]}, ["y"], {"four": array(1) * 0 + 4, "three": array(1) * 0 + 3})


@pytest.fixture
def divisions(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(division(), path)
    return path


def plugin(folder: Path, body: str, name: str = "plug.py") -> str:
    """A plug-in's file with the usual imports before `body`."""
    path = folder / name
    path.write_text(f"from dataclasses import dataclass\nfrom graphopt import *\n\n{body}")
    return str(path)


def simple(name: str, run: str = "pass", decorator: str = "@dataclass(frozen=True)") -> str:
    head = f"{decorator}\nclass P{name.title().replace('-', '')}(Pass):\n    'Does it.'\n    name = '{name}'\n"
    return f"{head}    def run(self, context):\n        {run}\n\n"


def test_example_is_short() -> None:
    assert len(example().splitlines()) < 30


def test_example_as_a_file(divisions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "div_to_mul.py"
    path.write_text(example())
    out = tmp_path / "o.onnx"
    code = invoke(
        ["run", str(divisions), "-o", str(out), "--plugin", str(path), "--passes", "div-to-mul", "--no-bench", "--explain", "div-to-mul"]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "refused  b: " in printed.out
    after = onnx.load(out)
    assert ops(after) == {"Mul": 1, "Div": 1, "Relu": 1}
    assert_same(division(), after, {"x": array(2, 3)}, exact=True)


def test_example_as_an_installed_package(divisions: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "example_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "div_to_mul.py").write_text(example())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[graphopt.passes]\nexample = div_to_mul\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    listed = subprocess.run([sys.executable, "-m", "graphopt", "passes"], capture_output=True, text=True, env=environment)
    assert "div-to-mul  (exact; onnx; example-plugin 1.0)" in listed.stdout, listed.stderr
    command = [sys.executable, "-m", "graphopt", "run", str(divisions), "--passes", "div-to-mul", "--no-bench"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert ops(onnx.load(tmp_path / "m.opt.onnx"))["Mul"] == 1


def test_the_documents_way_of_testing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "div_to_mul.py").write_text(example())
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"## Testing a pass.*?```python\n(.*?)```", DOCUMENT, re.DOTALL)[1], {})


def test_skeleton_works_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["new-pass", "my-first-pass", "--dir", str(tmp_path)]) == 0
    source, test = tmp_path / "my_first_pass.py", tmp_path / "test_my_first_pass.py"
    assert f"--plugin {source} --passes my-first-pass" in capsys.readouterr().out
    path = tmp_path / "m.onnx"
    onnx.save(model([node("Neg", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Relu", ["b"], ["y"])], {"x": [2, 3]}, ["y"]), path)
    assert invoke(["run", str(path), "--plugin", str(source), "--passes", "my-first-pass", "--no-bench"]) == 0
    assert ops(onnx.load(tmp_path / "m.opt.onnx")) == {"Relu": 1}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_skeleton_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("precious")
    with pytest.raises(OutputError, match=r"test_mine\.py"):
        write_skeleton("mine", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["test_mine.py"]
    with pytest.raises(OutputError, match="no such folder"):
        write_skeleton("mine", tmp_path / "none")


@pytest.mark.parametrize("name", ["", "Mine", "my_pass", "my--pass", "-mine", "1st", "../up", "class", "a b"])
def test_names_of_new_passes(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError):
        write_skeleton(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mine", "fuse-conv-bn", "x2"])
def test_skeleton_parses(tmp_path: Path, name: str) -> None:
    for path in write_skeleton(name, tmp_path):
        ast.parse(path.read_text())
        assert "@" not in path.read_text().replace("@dataclass", "")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom .*plug.py:4"),
        ("import no_such_module", "no_such_module"),
        ("x = 1", "defines no pass"),
        (simple("twin") + simple("twin").replace("class P", "class Q"), "two passes are called 'twin'"),
        (simple("eliminate-identity"), "two passes are called 'eliminate-identity'"),
        (simple("warm", decorator="@dataclass"), "frozen"),
        (simple("plain", decorator="# undecorated"), "frozen"),
        (simple("mute").replace("'Does it.'", "kinds = frozenset({'onnx'})"), "docstring"),
        (simple("Bad_Name"), "kebab-case"),
        (simple("odd").replace("name = 'odd'", "name = 'odd'\n    effect = 'exact'"), "effect"),
        (simple("bare").replace("name = 'bare'", "name = 'bare'\n    size: int"), "needs a default"),
    ],
    ids=["raises", "import", "empty", "twins", "taken", "warm", "plain", "mute", "name", "effect", "default"],
)
def test_plugins_that_are_turned_down(tmp_path: Path, body: str, words: str) -> None:
    registry = Registry.discover()
    with pytest.raises(PluginError, match=words):
        registry.load_plugin(plugin(tmp_path, body))


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    registry = Registry()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert registry.load_plugin(plugin(tmp_path / name, simple(name), "plug.py")) == [name]
    assert {r.cls.name for r in registry} == {"one", "two"}


OPTIONS = """@dataclass(frozen=True)
class Tuned(Pass):
    'Has options.'
    name = 'tuned'
    size: int = option(3, 'a size', minimum=1, maximum=9)
    mode: str = option('a', 'a mode', choices=('a', 'b'))
    fast: bool = option(False, 'whether')
    def run(self, context):
        context.log.note(f'size {self.size}, mode {self.mode}, fast {self.fast}')
"""


@pytest.mark.parametrize("value", ["size=0", "size=10", "size=x", "size=1.5", "mode=c", "fast=maybe", "nope=1"])
def test_bad_option_values(tmp_path: Path, divisions: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    arguments = ["run", str(divisions), "--plugin", plugin(tmp_path, OPTIONS), "--passes", "tuned", "--set", f"tuned.{value}"]
    assert invoke(arguments) == 2
    printed = capsys.readouterr().err
    assert "tuned" in printed
    assert value.split("=")[0] in printed
    assert not (tmp_path / "m.opt.onnx").exists()


def test_option_values_reach_the_pass(tmp_path: Path, divisions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(divisions), "--plugin", plugin(tmp_path, OPTIONS), "--passes", "tuned", "--no-bench"]
    assert invoke([*arguments, "--set", "tuned.size=9", "--set", "tuned.mode=b", "--set", "tuned.fast=yes"]) == 0
    assert "size 9, mode b, fast True" in capsys.readouterr().out


def test_a_pass_that_raises_is_isolated(tmp_path: Path, divisions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil = "context.model.graph.outputs[0].name = 'spoilt'; raise ValueError('lost my way')"
    (tmp_path / "good.py").write_text(example())
    arguments = ["run", str(divisions), "--plugin", plugin(tmp_path, simple("fragile", spoil)), "--plugin", str(tmp_path / "good.py")]
    assert invoke([*arguments, "--passes", "fragile,div-to-mul", "--no-bench"]) == 0
    printed = capsys.readouterr().out
    assert "ValueError: lost my way (plug.py:" in printed
    assert "failed" in printed
    after = onnx.load(tmp_path / "m.opt.onnx")
    assert [o.name for o in after.graph.output] == ["y"]
    assert ops(after) == {"Mul": 1, "Div": 1, "Relu": 1}


def test_example_on_a_torch_graph(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from graphopt.aten import AtenContext, Program
    from graphopt.rewriting import ChangeLog

    class Divisions(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x / 4) / 3

    path = tmp_path / "div_to_mul_too.py"
    path.write_text(example("torch example"))
    registry = Registry()
    registry.load_plugin(str(path))
    x = torch.randn(2, 3)
    program = Program(torch.export.export(Divisions(), (x,)).run_decompositions({}))
    log = ChangeLog("div-to-mul-too")
    registry.get("div-to-mul-too").configure().run_aten(AtenContext(program, log))
    assert log.applied == 1 and [r.reason for r in log.refusals] == ["the divisor is not a power of two"]
    assert torch.equal(program.export().module()(x), Divisions()(x))


def test_example_of_a_rule_of_onnxscript(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, source, target = tmp_path / "swap.py", tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_text(example("onnxscript example"))
    nodes = [node("Sub", ["x", "z"], ["a"]), node("Neg", ["a"], ["y"]), node("Sub", ["i", "j"], ["b"]), node("Neg", ["b"], ["k"])]
    before = model(nodes, {n: [3] for n in "xzij"}, ["y", "k"], types=dict.fromkeys("ijk", onnx.TensorProto.INT64))
    onnx.save(before, source)
    code = invoke(["run", str(source), "-o", str(target), "--plugin", str(path), "--passes", "swap-negated-sub", "--no-bench", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0 and report["verification"]["verdict"] in ("identical", "equivalent")
    assert report["passes"][0]["applied"] == 1
    assert report["passes"][0]["refused"] == [{"node": "k", "reason": "the values are not known to be floating-point (i)"}]
    assert ops(onnx.load(target)) == {"Sub": 2, "Neg": 1}
