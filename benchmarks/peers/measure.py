"""One model through every tool: what each result is, whether it is right, and how fast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from benchmarks.peers import tools
from benchmarks.peers.models import Case
from benchmarks.peers.tools import TOOLS, Tool
from graphopt.errors import GraphoptError
from graphopt.measurement import compare, same_runtime_graph
from graphopt.verification import Reference, Sample, verify

RIGHT = ("identical", "equivalent")


class Measurer:
    """Carries out what the command line asks for, model by model.

    Attributes:
        python: the python of the other tools' environment.
        work: where results go: `work/MODEL/TOOL.onnx`.
        threads: numbers of threads to time with.
        seconds: longest time for one figure.
        timeout: longest time for one tool on one model.
    """

    def __init__(self, python: Path, work: Path, threads: Sequence[int], seconds: float, timeout: float) -> None:
        self.python, self.work = python, work
        self.threads, self.seconds, self.timeout = threads, seconds, timeout

    def model(self, case: Case, chosen: Sequence[Tool]) -> dict[str, Any]:
        """A row of the table: the original, and by tool what came of it."""
        folder = self.work / case.name
        folder.mkdir(parents=True, exist_ok=True)
        samples = [Sample(case.feeds(i), f"size {i}") for i in range(2)]
        row: dict[str, Any] = {"model": case.name, "original": size(case.path), "tools": {}}
        reference = Reference(case.path)
        try:
            for tool in chosen:
                if tools.applies(tool, case.name):
                    row["tools"][tool.name] = self._tool(tool, case, folder / f"{tool.name}.onnx", samples, reference)
        finally:
            reference.close()
        for thread in self.threads:
            for tool in chosen:
                self._time(row, tool, case, folder, samples[0].feeds, thread)
            for tool in chosen:
                if tool.preset is not None:
                    self._against_the_best(row, tool, folder, samples[0].feeds, thread)
        return row

    def _tool(self, tool: Tool, case: Case, target: Path, samples: Sequence[Sample], reference: Reference) -> dict[str, Any]:
        found = self._ran(tool, case, target)
        if found["status"] != "ok":
            return found
        found |= size(target)
        try:
            found["verdict"] = verify(case.path, target, samples, reference=reference, coverage=False).verdict
        except GraphoptError as error:
            found["verdict"], found["error"] = "fails", str(error)[-200:]
        if found["verdict"] in RIGHT:
            found["same_graph"] = same_runtime_graph(case.path, target)
        return found

    def _ran(self, tool: Tool, case: Case, target: Path) -> dict[str, Any]:
        """Run a tool, or take what it made of the same model before, unless it is graphopt."""
        notes = target.with_suffix(".json")
        stat = case.path.stat()
        key = [tools.REQUIREMENTS.read_text(encoding="utf-8"), str(case.path.resolve()), stat.st_size, stat.st_mtime_ns]
        if tool.preset is None and notes.exists():
            kept = json.loads(notes.read_text(encoding="utf-8"))
            if kept["key"] == key:
                return kept["run"]
        target.unlink(missing_ok=True)
        ran = asdict(tools.run(tool, case.name, case.path, target, python=self.python, timeout=self.timeout))
        notes.write_text(json.dumps({"key": key, "run": ran}), encoding="utf-8")
        return ran

    def _time(self, row: dict[str, Any], tool: Tool, case: Case, folder: Path, feeds: dict[str, Any], threads: int) -> None:
        found = row["tools"].get(tool.name)
        if found is None or found.get("verdict") not in RIGHT:
            return
        if found["same_graph"]:
            speed: dict[str, Any] = {"ratio": 1.0, "low": 1.0, "high": 1.0, "same": True}
        else:
            speed = _speed(case.path, folder / f"{tool.name}.onnx", feeds, threads, self.seconds)
        found.setdefault("speed", {})[str(threads)] = speed

    def _against_the_best(self, row: dict[str, Any], tool: Tool, folder: Path, feeds: dict[str, Any], threads: int) -> None:
        """Time a result of graphopt beside the fastest result of the others that may be compared with it."""
        found = row["tools"].get(tool.name, {})
        key = str(threads)
        if key not in found.get("speed", {}):
            return
        others = {
            name: other["speed"][key]["ratio"]
            for name, other in row["tools"].items()
            if TOOLS[name].preset is None and key in other.get("speed", {})
        }
        if not others:
            return
        best = max(others, key=others.__getitem__)
        if row["tools"][best]["speed"][key].get("same"):
            direct = dict(found["speed"][key])  # the best of the others is the original to the runtime
        else:
            direct = _speed(folder / f"{best}.onnx", folder / f"{tool.name}.onnx", feeds, threads, self.seconds)
        found.setdefault("against_best", {})[key] = {"tool": best, "best_ratio": others[best], **direct}


def size(path: Path) -> dict[str, Any]:
    """Nodes of a model (of the graph, subgraphs and functions; Constant nodes, which hold weights, apart) and its bytes."""
    model = onnx.load(path, load_external_data=False)
    nodes = constants = 0
    pending = [model.graph.node, *(f.node for f in model.functions)]
    while pending:
        for node in pending.pop():
            constants += node.op_type == "Constant"
            nodes += node.op_type != "Constant"
            for attribute in node.attribute:
                pending += [g.node for g in (attribute.g, *attribute.graphs) if g.node]
    files = {path.name, *(e.value for t in model.graph.initializer for e in t.external_data if e.key == "location")}
    return {"nodes": nodes, "constants": constants, "bytes": sum((path.parent / f).stat().st_size for f in files)}


def _speed(a: Path, b: Path, feeds: dict[str, Any], threads: int, seconds: float) -> dict[str, Any]:
    speed = compare(a, b, feeds, threads=threads, max_seconds=seconds)
    return {key: round(getattr(speed, key), 4) for key in ("ratio", "low", "high", "before_ms", "after_ms", "pairs",
                                                           "session_before_ms", "session_after_ms")}
