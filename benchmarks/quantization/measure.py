"""One model through every tool: what each made of it, how much quality it lost, and how fast it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.measure import size
from benchmarks.quantization import quality, tools
from benchmarks.quantization.cases import Case
from benchmarks.quantization.results import Results, digest
from benchmarks.quantization.tools import Tool
from graphopt import runtime
from graphopt.errors import GraphoptError
from graphopt.measurement import final_graph, integer_kernels, race
from graphopt.measurement.timing import timed_session

_COMPARED = 64  # evaluation samples whose outputs are compared
# What the time goes into, where it stays in float.
_HEAVY = (
    "Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM", "GRU", "Attention", "MultiHeadAttention",
)  # fmt: skip


def collect(python: Path, work: Path) -> None:
    """Gather the real inputs, unless they are there."""
    from models.zoo.fetching import cache_dir

    subprocess.run([str(python), str(tools.COLLECT), str(work / "data"), str(cache_dir() / "archives")], check=True, stdout=sys.stderr)


class Model:
    """One model, its float session and what that answers, made when they are needed.

    Attributes:
        case: the model.
        folder: where results go: `folder/TOOL.onnx`.
        results: what was found before, and what is found now.
    """

    def __init__(self, case: Case, work: Path, results: Results) -> None:
        self.case, self.results = case, results
        self.folder = work / "results" / case.name
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def digest(self) -> str:
        return digest(self.case.path())

    @cached_property
    def float_run(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        return _runner(self.case.path())

    @cached_property
    def _feeds(self) -> list[dict[str, np.ndarray]]:
        return self.case.task.feeds("evaluation", self.float_run)[:_COMPARED]

    @cached_property
    def _expected(self) -> list[dict[str, Any]]:
        return [self.float_run(fed) for fed in self._feeds]

    def calibration(self) -> Path:
        """The folder of the samples that all tools calibrate on, written once."""
        folder = self.folder / "calibration"
        if not (folder / "000.npz").exists():
            folder.mkdir(exist_ok=True)
            feeds = self.case.task.feeds("calibration", self.float_run)
            for i in reversed(range(len(feeds))):  # the first one last: it says that all are there
                np.savez(folder / f"{i:03}.npz", **feeds[i])
        return folder

    def path(self, tool: Tool) -> Path:
        return self.folder / f"{tool.name}.onnx"

    def make(self, tool: Tool, *, python: Path, threads: int, timeout: float) -> dict[str, Any]:
        """What a tool makes of the model; made before by the same code: that."""
        key = ("made", self.case.name, tool.name)
        by = digest(self.digest, tools.fingerprint(tool))
        found, target = self.results.get(*key), self.path(tool)
        if found is not None and found["by"] == by and (found["status"] != "ok" or target.exists()):
            return found
        target.unlink(missing_ok=True)
        ran = tools.run(tool, self.case, self.calibration(), target, python=python, threads=threads, timeout=timeout)
        more = {**size(target), "digest": digest(target)} if ran.status == "ok" else {}
        return self.results.add(*key, by=by, **asdict(ran), **more)

    def float_score(self) -> dict[str, Any]:
        """The float model's own score and size."""
        key = ("float", self.case.name, self.digest)
        found = self.results.get(*key)
        if found is not None:
            return found
        score = self.case.task.score
        value = None if score is None else score(self.float_run, "evaluation", self.float_run)
        return self.results.add(*key, score=value, **size(self.case.path()))

    def judge(self, tool: Tool) -> dict[str, Any] | None:
        """The quality of a result, and the kernels that the runtime runs it on; None where there is no result."""
        made = self.results.get("made", self.case.name, tool.name)
        if made is None or made["status"] != "ok":
            return None
        key = ("quality", self.case.name, tool.name, self.digest, made["digest"])
        return self.results.get(*key) or self.results.add(*key, **self._judged(tool))

    def _judged(self, tool: Tool) -> dict[str, Any]:
        before = self.float_score()["score"]
        try:
            run = _runner(self.path(tool))
            near = quality.agreement(self._expected, [run(fed) for fed in self._feeds], self.case.task.classes)
            score = self.case.task.score
            after = None if score is None else score(run, "evaluation", self.float_run)
            graph = final_graph(self.path(tool), threads=1)
        except (GraphoptError, ValueError, IndexError) as error:
            return {"fault": " ".join(str(error).split())[-300:]}
        found: dict[str, Any] = {**asdict(near), "score": after, "loss": quality.loss(before, after, near)}
        if graph is not None:
            operators = {name.split("::")[-1]: 0 for name in graph.operators}
            for name, count in graph.operators.items():
                operators[name.split("::")[-1]] += count
            found["integer"] = integer_kernels(graph)
            found["float"] = {name: operators[name] for name in _HEAVY if operators.get(name)}
            found["conversions"] = operators.get("QuantizeLinear", 0) + operators.get("DequantizeLinear", 0)
        return found

    def time(self, chosen: Sequence[Tool], threads: int, seconds: float) -> None:
        """The speeds of all results that run and were not timed yet, beside the float model, in turns of all of them."""
        waiting = []
        for tool in chosen:
            judged = self.judge(tool)
            if judged is None or "fault" in judged:
                continue
            if self.results.get(*self._speed_key(tool, threads)) is None:
                waiting.append(tool)
        if not waiting:
            return
        feeds = self.case.timed()
        paths = [self.case.path(), *map(self.path, waiting)]
        contenders = [lambda path=path: timed_session(path, feeds, threads=threads, provider="cpu") for path in paths]
        speeds = race(contenders, threads=threads, min_seconds=1.0, max_seconds=seconds * len(paths))
        for tool, speed in zip(waiting, speeds, strict=True):
            figures = {k: round(getattr(speed, k), 4) for k in ("ratio", "low", "high", "before_ms", "after_ms", "pairs")}
            self.results.add(*self._speed_key(tool, threads), **figures)

    def _speed_key(self, tool: Tool, threads: int) -> tuple[Any, ...]:
        made = self.results.get("made", self.case.name, tool.name) or {}
        return ("speed", self.case.name, tool.name, threads, self.digest, made.get("digest"))

    def row(self, chosen: Sequence[Tool], threads: Sequence[int]) -> dict[str, Any]:
        """All that is known of the model, for the tables."""
        row = {
            "model": self.case.name, "kind": self.case.kind, "headline": self.case.headline, "what": self.case.task.what,
            "float": self.float_score(), "tools": {},
        }  # fmt: skip
        for tool in chosen:
            made = self.results.get("made", self.case.name, tool.name)
            if made is None or not tools.applies(tool, self.case):
                continue
            speeds = {t: self.results.get(*self._speed_key(tool, t)) for t in threads}
            row["tools"][tool.name] = {
                "status": made["status"], "error": made.get("error", ""), "notes": made.get("notes", ""), "bytes": made.get("bytes"),
                "quality": self.judge(tool), "speed": {t: s for t, s in speeds.items() if s is not None},
            }  # fmt: skip
        return row


def _runner(path: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    session = runtime.session(path, threads=1)
    return lambda fed: runtime.run(session, fed)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    from graphopt.measurement import detect

    return {"runtime": runtime.version(), **json.loads(json.dumps(detect("cpu", 0).to_dict(), default=str))}
