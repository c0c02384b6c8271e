"""Saves what is needed to see a pass's fault again: the model cut down around it, inputs for the cut, and what to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError
from graphopt.model import Model
from graphopt.pipeline.bisect import Culprit
from graphopt.pipeline.runner import Candidate, Hold
from graphopt.rewriting.base import node_label

_DEPTHS = (1, 4, 16)  # operators before and behind the node at fault that a cut keeps; then the whole model


def write_reproducer(
    culprit: Culprit,
    failing: Candidate,
    build: Callable[[Hold], Candidate],
    samples: Sequence[Any],
    destination: Path,
    *,
    threads: int = 0,
) -> Path | None:
    """Write `<destination>.fault-<pass>/` with model.onnx, inputs.npz and fault.json; returns the folder, or None.

    The model is the one that the pass at fault was about to change, cut down to the smallest neighbourhood of the node
    on which the pass still has something to change; None where that cannot be cut (a fault inside a subgraph).
    """
    number = next((a.number for a in failing.applications if (a.pass_name, a.label) == (culprit.pass_name, culprit.label)), None)
    if number is None or not samples:
        return None
    before = build(replace(failing.hold, limit=number)).model
    after = build(replace(failing.hold, limit=number + 1)).model
    graph = before.graph.graph
    node = next((n for n in graph if node_label(n) == culprit.label), None)
    if node is None:
        return None
    survivors = {v.name for n in after.graph.graph for v in n.outputs} | {v.name for v in after.graph.graph.inputs}
    for depth in _DEPTHS:
        try:
            cut = _cut(graph, node, depth, survivors)
            feeds = None if cut is None else _boundary(before.graph, cut, samples[0].feeds, threads)
        except (GraphoptError, ValueError):
            continue  # a larger cut may be well bounded where this one is not
        if cut is not None and feeds is not None:
            return _write(culprit, cut, feeds, destination, before.graph)
    return None


def _cut(graph: ir.Graph, node: ir.Node, depth: int, survivors: set[str | None]) -> ir.Graph | None:
    """The neighbourhood of a node: `depth` operators before it, and behind it up to values that the rewrite kept."""
    outputs = dict.fromkeys(v for v in node.outputs if v.uses() or v.is_graph_output())
    for _ in range(depth):
        if all(v.name in survivors for v in outputs):
            break
        behind = dict.fromkeys(u.node for v in outputs for u in v.uses() if u.node.graph is graph)
        outputs = dict.fromkeys(v for n in behind for v in n.outputs if v.uses() or v.is_graph_output())
    if not outputs:
        return None
    kept: dict[ir.Node, int] = {}
    front = [(v.producer(), 2 * depth) for v in outputs if v.producer() is not None]
    while front:
        current, left = front.pop()
        if kept.get(current, -1) >= left or current.graph is not graph:
            continue
        kept[current] = left
        if left:
            front.extend((v.producer(), left - 1) for v in current.inputs if v is not None and v.producer() is not None)
    inputs = dict.fromkeys(
        v for n in kept for v in n.inputs
        if v is not None and v.producer() not in kept and (not v.is_initializer() or v.is_graph_input())
    )
    return ir.convenience.extract(graph, list(inputs), list(outputs))


def _boundary(model: ir.Model, cut: ir.Graph, feeds: dict[str, Any], threads: int) -> dict[str, np.ndarray]:
    """What the whole model computes for the inputs of the cut, under the runtime without optimizations."""
    from graphopt import runtime
    from graphopt.formats.onnx import to_bytes

    known = {v.name for v in model.graph.inputs}
    wanted = [v.name for v in cut.inputs if v.name not in known]
    probe = model.clone()
    produced = {v.name: v for n in probe.graph for v in n.outputs}
    for name in wanted:
        if not produced[name].is_graph_output():
            probe.graph.outputs.append(produced[name])
    values = runtime.run(runtime.session(to_bytes(probe), optimize=False, threads=threads), feeds)
    found = {v.name: (feeds[v.name] if v.name in feeds else values[v.name]) for v in cut.inputs}
    for value in cut.inputs:
        array = found[value.name]
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = ir.Shape(array.shape)
    return found


def _write(culprit: Culprit, cut: ir.Graph, feeds: dict[str, np.ndarray], destination: Path, whole: ir.Model) -> Path:
    from graphopt.formats import save_model

    folder = destination.with_name(f"{destination.name}.fault-{culprit.pass_name}")
    folder.mkdir(exist_ok=True)
    cut.opset_imports.update(whole.opset_imports)
    model = ir.Model(cut, ir_version=whole.ir_version, functions=list(whole.functions.values()))
    save_model(Model.from_ir(model), folder / "model.onnx", in_place=True)
    np.savez(folder / "inputs.npz", **feeds)
    told = {
        "pass": culprit.pass_name,
        "node": culprit.label,
        "reason": culprit.reason,
        "command": f"graphopt run model.onnx --passes {culprit.pass_name} --samples inputs.npz --no-bench",
    }
    (folder / "fault.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return folder
