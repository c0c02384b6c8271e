"""The tools that are compared, and how each is run over a model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RUN_TOOL = Path(__file__).with_name("run_tool.py")
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
DEFAULT_PYTHON = Path("build/peers/bin/python")


@dataclass(frozen=True)
class Tool:
    """One optimizer.

    Attributes:
        name: as the tables show it.
        portable: whether its results hold standard ONNX operators alone. Those are the measure of the default preset,
            the others of the preset `ort`.
        preset: graphopt's preset; None for another tool.
        transformers: whether it is for transformer models only, and is told which kind one is.
    """

    name: str
    portable: bool
    preset: str | None = None
    transformers: bool = False


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("onnxsim", portable=True),
        Tool("onnxslim", portable=True),
        Tool("onnxoptimizer", portable=True),
        Tool("onnxscript", portable=True),
        Tool("ort_basic", portable=True),
        Tool("ort_extended", portable=False),
        Tool("ort_fusions", portable=False, transformers=True),
        Tool("ort_transformers", portable=False, transformers=True),
        Tool("graphopt", portable=True, preset="default"),
        Tool("graphopt_ort", portable=False, preset="ort"),
    )
}

# What the transformer optimizer is told of a model, by how the model's name begins.
_TYPES = {"bert": "bert", "minilm": "bert", "gpt2": "gpt2", "llama": "gpt2", "vit": "vit"}


def model_type(model: str) -> str | None:
    """The kind of transformer that a model is, as ONNX Runtime's transformer optimizer calls it; None: it is none."""
    return next((kind for prefix, kind in _TYPES.items() if model.startswith(prefix)), None)


def applies(tool: Tool, model: str) -> bool:
    """Whether a tool is meant for a model."""
    return not tool.transformers or model_type(model) is not None


@dataclass(frozen=True)
class Run:
    """What came of one tool on one model: "ok", "timeout" or "crash", seconds of the whole process, and its last words."""

    status: str
    seconds: float
    error: str = ""


def run(tool: Tool, model: str, source: Path, target: Path, *, python: Path, timeout: float) -> Run:
    """Run a tool as a process of its own; `python` is that of the other tools' environment."""
    if tool.preset is not None:
        # Settings of the session and other presets are looked for beside the result, which is the same without.
        command = [sys.executable, "-m", "graphopt", "run", str(source), "-o", str(target), "--preset", tool.preset, "--no-tune", "--quiet"]
    else:
        command = [str(python), str(RUN_TOOL), tool.name, str(source), str(target)]
        command += [model_type(model) or ""] if tool.name == "ort_transformers" else []
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=_environment())
    except subprocess.TimeoutExpired:
        return Run("timeout", time.perf_counter() - started)
    seconds = time.perf_counter() - started
    if target.exists() and done.returncode == 0:
        return Run("ok", seconds)
    words = [line for line in done.stderr.splitlines() if line.strip()]
    return Run("crash", seconds, words[-1][-200:] if words else f"exit code {done.returncode}, no result")


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
