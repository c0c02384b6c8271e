"""What holds the project together: who may import whom, and that the command line starts quickly."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import graphopt

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "numpy")

# What a pass may import of graphopt; a plug-in of somebody else gets all of it from `graphopt` itself.
PUBLIC_TO_PASSES = ("graphopt", "graphopt.errors", "graphopt.model", "graphopt.aten", "graphopt.rewriting")


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports by an absolute name, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_import_contracts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    linter = pytest.importorskip("importlinter.cli")
    monkeypatch.chdir(ROOT)
    assert linter.lint_imports(no_cache=True) == 0, capsys.readouterr().out


def test_nothing_imports_the_passes_by_name() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted((ROOT / "graphopt").rglob("*.py"))
        for line, name in imports(file)
        if name == "graphopt.passes" or name.startswith(("graphopt.passes.", "passes"))
    ]
    assert not found


def test_passes_import_the_public_api_only() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in sorted((ROOT / "passes").rglob("*.py"))
        for line, name in imports(file)
        if name.startswith("graphopt.") and not any(name == p or name.startswith(p + ".") for p in PUBLIC_TO_PASSES[1:])
    ]
    assert not found


def test_finding_the_passes_does_not_import_torch() -> None:
    code = "import sys; from graphopt.pipeline.registry import Registry; Registry.discover(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_real_and_known_to_type_checkers() -> None:
    for name in graphopt.__all__:
        assert getattr(graphopt, name) is not None
    tree = ast.parse((ROOT / "graphopt/__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    declared = {alias.name: n.module for n in ast.walk(block) if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert declared == graphopt._HOME
    assert set(graphopt.__all__) <= set(dir(graphopt))
    assert graphopt.__version__
    with pytest.raises(AttributeError, match="nonsense"):
        _ = graphopt.nonsense


def test_every_package_is_installed() -> None:
    """An editable install shows what a wheel would lack."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"])
    folders = {"graphopt": "graphopt", "passes": "graphopt.passes"}
    found = {
        ".".join([package, *file.parent.relative_to(ROOT / folder).parts])
        for folder, package in folders.items()
        for file in (ROOT / folder).rglob("*.py")
    }
    assert found == listed


@pytest.mark.parametrize("code", ["import graphopt", "from graphopt.cli.entry import invoke; invoke(['--help'])"])
def test_light_imports(code: str) -> None:
    script = f"import sys\n{code}\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def cpu_seconds(*command: str) -> float:
    """CPU time of a command, the least of five runs: what it costs, whatever else the machine does."""
    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


@pytest.mark.parametrize(("arguments", "limit"), [(("-c", "import graphopt"), 0.1), (("-m", "graphopt", "--help"), 0.5)])
def test_start_up_costs_little(arguments: tuple[str, ...], limit: float) -> None:
    interpreter = cpu_seconds(sys.executable, "-c", "pass")
    assert cpu_seconds(sys.executable, *arguments) - interpreter < limit


def test_files_stay_readable() -> None:
    folders = ("graphopt", "passes")
    long = {
        str(file.relative_to(ROOT)): n
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        if (n := len(file.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert not long


def test_source_tree_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "graphopt", "frobnicate"], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 2
    assert done.stderr.startswith("graphopt: error: ")
