"""The tools that are compared, and how each is run over a model."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.quantization.cases import ROOT, Case
from benchmarks.quantization.data import work_folder
from benchmarks.quantization.quality import BUDGET
from benchmarks.quantization.results import digest

RUN_TOOL = Path(__file__).with_name("run_tool.py")
COLLECT = Path(__file__).with_name("collect_data.py")
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
DEFAULT_PYTHON = Path("build/quantization-peers/bin/python")


@dataclass(frozen=True)
class Tool:
    """One quantizer.

    Attributes:
        name: as the tables show it.
        preset: graphopt's preset; None for another tool.
        lossless: whether it computes the same as the model; such a result is the measure of nothing but speed.
        encoders: whether it is for models alone in which products of matrices, or LSTMs, count.
    """

    name: str
    preset: str | None = None
    lossless: bool = False
    encoders: bool = False


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("ort_static"),
        Tool("ort_dynamic"),
        Tool("ort_dynamic_matmul", encoders=True),
        Tool("nncf"),
        Tool("neural_compressor"),
        Tool("olive"),
        Tool("ort_int4", encoders=True),
        Tool("graphopt", "default", lossless=True),
        Tool("graphopt_int8", "int8"),
        Tool("graphopt_int8_dynamic", "int8-dynamic", encoders=True),
        Tool("graphopt_int4", "int4", encoders=True),
    )
}

# What graphopt holds the outputs to where a model has no score: the same loss.
COSINE = f"cos:{1 - BUDGET:g}"


def _with_products(case: Case) -> bool:
    """Whether products of matrices, or an LSTM, take a good part of a model's time."""
    return case.kind in ("encoder", "text") or case.name == "ppocrv4_rec" or case.name.startswith("silero")


def applies(tool: Tool, case: Case) -> bool:
    """Whether a tool is run on a model: what is quantized already is no input for the others."""
    if case.kind == "quantized" and (tool.preset is None or tool.encoders):
        return False
    return not tool.encoders or _with_products(case)


@dataclass(frozen=True)
class Run:
    """What came of one tool on one model: "ok", "timeout" or "crash", seconds of the whole process, its last words, its notes."""

    status: str
    seconds: float
    error: str = ""
    notes: str = ""


def command(tool: Tool, case: Case, calibration: Path, target: Path, python: Path, threads: int) -> list[str]:
    """The command line; `python` is that of the other tools' environment."""
    source = str(case.path())
    if tool.preset is None:
        return [str(python), str(RUN_TOOL), tool.name, source, str(target), str(calibration), case.transformer]
    # Settings of the session are looked for beside the result, which is the same without.
    line = [sys.executable, "-m", "graphopt", "run", source, "-o", str(target), "--preset", tool.preset, "--no-tune", "--quiet"]
    line += ["--threads", str(threads), "--report", str(target.with_suffix(".report.json"))]
    if tool.lossless:
        return line
    if tool.preset in calibrating():
        line += ["--calibration", str(calibration)]
    if case.task.score is None:
        return [*line, "--budget", COSINE]
    return [*line, "--budget", str(BUDGET), "--metric", f"benchmarks.quantization.metrics:{case.name}"]


@cache
def calibrating() -> frozenset[str]:
    """The presets in which a pass calibrates: the others turn calibration samples down."""
    from graphopt.pipeline.presets import build_pipeline
    from graphopt.pipeline.registry import Registry

    registry = Registry.discover()
    presets = {tool.preset for tool in TOOLS.values() if tool.preset is not None}
    return frozenset(p for p in presets if any(s.calibrates for s in build_pipeline(registry, preset=p).steps))


def run(tool: Tool, case: Case, calibration: Path, target: Path, *, python: Path, threads: int, timeout: float) -> Run:
    """Run a tool as a process of its own."""
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
        "GRAPHOPT_QUANTIZATION_WORK": str(work_folder().resolve()),
    }  # fmt: skip
    started = time.perf_counter()
    line = command(tool, case, calibration, target, python, threads)
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, env=environment, cwd=ROOT, check=False)
    except subprocess.TimeoutExpired:
        return Run("timeout", time.perf_counter() - started)
    seconds = time.perf_counter() - started
    notes = "; ".join(re.findall(r"^NOTE (.*)$", done.stdout, re.MULTILINE))
    words = [line for line in done.stderr.splitlines() if line.strip()]
    # Exit code 1: graphopt could not reach what was asked for, said so, and wrote the best that there is.
    if target.exists() and done.returncode in ((0, 1) if tool.preset is not None else (0,)):
        return Run("ok", seconds, notes=words[-1][-300:] if done.returncode else notes)
    return Run("crash", seconds, words[-1][-300:] if words else f"exit code {done.returncode}, no result", notes)


def _sources(name: str) -> list[str]:
    """The code of one tool in the script that runs it, and what all of them share."""
    text = RUN_TOOL.read_text(encoding="utf-8")
    tree = ast.parse(text).body
    parts = [node for node in tree if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    shared = [node for node in parts if isinstance(node, ast.ClassDef) or node.name.startswith("_") or node.name == name]
    return [ast.get_source_segment(text, node) or "" for node in shared]


@cache
def fingerprint(tool: Tool) -> str:
    """Of the code that a result comes from: a result of the same code is not made again."""
    if tool.preset is None:
        return digest(REQUIREMENTS, *_sources(tool.name))
    code = sorted(path for folder in ("graphopt", "passes") for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".toml"))
    return digest(tool.preset, *code)
