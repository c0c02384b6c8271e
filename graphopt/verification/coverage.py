"""How much of a graph a set of samples exercises.

The model runs once more with a bounded, evenly spread choice of its intermediate float values as outputs. A value that
is the same everywhere, on every sample, would hide whatever feeds it: a dead branch, a saturated gate. The bodies of If
nodes count by which of their branches ran.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import runtime
from graphopt.errors import GraphoptError
from graphopt.verification import perturb
from graphopt.verification.informative import live_values
from graphopt.verification.metrics import is_float, wide
from graphopt.verification.samples import Sample

_CHUNK = 100  # values watched in one session, so that memory holds that many activations at most
_LEVEL = 1e-6
_STUCK = 0.999  # part of the elements at one end of its range that makes a value saturated


@dataclass
class Coverage:
    """values: watched; constant: the same everywhere on every sample; saturated: at the ends of their range nearly
    everywhere; never_run: branches of If nodes in the main graph that no sample took; branch_nodes, branch_nodes_run:
    nodes in such branches, and those in the taken ones; note: why there are no figures, or "".
    """

    values: int = 0
    constant: int = 0
    saturated: int = 0
    branch_nodes: int = 0
    branch_nodes_run: int = 0
    never_run: list[str] = field(default_factory=list)
    constant_names: list[str] = field(default_factory=list)
    note: str = ""

    @classmethod
    def of(cls, seen: Mapping[str, Seen]) -> Coverage:
        """What values, by name, were seen to take."""
        result = cls()
        for name, one in seen.items():
            if one.count:
                result.values += 1
                result.constant += one.constant
                result.saturated += one.saturated
                if one.constant:
                    result.constant_names.append(name)
        return result

    @property
    def exercised(self) -> float | None:
        """The part of watched values and of nodes in branches that did something; None where nothing was watched."""
        total = self.values + self.branch_nodes
        if self.note or not total:
            return None
        return (self.values - self.constant - self.saturated + self.branch_nodes_run) / total

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "values": self.values, "constant": self.constant, "saturated": self.saturated,
            "branch nodes": self.branch_nodes, "branch nodes run": self.branch_nodes_run,
            "never run": self.never_run, "exercised": self.exercised, "note": self.note,
        }  # fmt: skip


def measure(
    source: str | os.PathLike | bytes,
    samples: Sequence[Sample],
    *,
    threads: int = 0,
    provider: str = "cpu",
    limit: int = 200,
    seconds: float = 8.0,
) -> Coverage:
    """Watches up to `limit` values of the main graph on up to four samples, on fewer where that takes too long.

    seconds: about how long it may take; each value is watched on one sample at least.

    source: an ONNX file or the bytes of one; its weights are copied in memory once, so models above
    `perturb.COPY_LIMIT` bytes of weights are passed over, with a note. Never raises for what the runtime refuses:
    that is a note too.
    """
    samples = spread(list(samples), 4)
    if not samples:
        return Coverage(note="no samples")
    try:
        model = perturb.load(source)
    except GraphoptError as error:
        return Coverage(note=f"not measured: {error}")
    if (size := perturb.weight_bytes(model)) > perturb.COPY_LIMIT:
        return Coverage(note=f"not measured: {size / 1e9:.1f} GB of weights are too much to copy")
    values, conditions = _watched(model, limit)
    branches = {v: [n for n, _ in v.uses() if n.op_type == "If" and n.graph is model.graph] for v in conditions}
    names = {v.name: _bounded(v) for v in values}
    seen: dict[str, Seen] = {v.name: Seen(names[v.name]) for v in values}
    taken: dict[str, set[bool]] = {v.name: set() for v in conditions}
    watched = [*conditions, *values]
    outputs = list(model.graph.outputs)
    begun = time.monotonic()
    try:
        for start in range(0, len(watched), _CHUNK):
            chunk = watched[start : start + _CHUNK]
            extra = [v for v in chunk if v not in outputs]
            _watch(model, outputs, extra)
            session = runtime.session(perturb.inline(model), optimize=False, threads=threads, provider=provider)
            for number, sample in enumerate(samples):
                if number and time.monotonic() > begun + seconds * (start + len(chunk)) / len(watched):
                    break  # each chunk has its share of the time
                for name, value in runtime.run(session, sample.feeds).items():
                    if name in taken:
                        taken[name].add(bool(np.asarray(value).reshape(-1)[0]))
                    elif name in seen and isinstance(value, np.ndarray):
                        seen[name].add(value)
            del session
    except (GraphoptError, ValueError) as error:  # ValueError: protobuf's limit of 2 GB, in strings that are no weights
        return Coverage(note=f"not measured: {' '.join(str(error).split())}")
    result = Coverage.of(seen)
    for value, nodes in branches.items():
        for node in nodes:
            _count(result, node, taken[value.name])
    return result


class Seen:
    """What was seen of one value over all samples."""

    def __init__(self, ends: tuple[float, ...]):
        self.count, self._ends = 0, ends
        self._low, self._high = np.inf, -np.inf
        self._stuck = self._elements = 0

    def add(self, value: np.ndarray) -> None:
        if not is_float(value) or not value.size:
            return
        numbers = np.abs(wide(value)) if value.dtype.kind == "c" else wide(value)
        numbers = numbers[np.isfinite(numbers)]
        self.count += 1
        if numbers.size:
            self._low, self._high = min(self._low, numbers.min()), max(self._high, numbers.max())
            self._elements += numbers.size
            stuck = np.zeros(numbers.shape, bool)
            for end in self._ends:
                stuck |= np.abs(numbers - end) <= 1e-6
            self._stuck += int(np.count_nonzero(stuck))

    @property
    def constant(self) -> bool:
        return bool(self._high - self._low <= _LEVEL * max(abs(self._high), abs(self._low))) or not self._elements

    @property
    def saturated(self) -> bool:
        return not self.constant and bool(self._ends) and self._stuck >= _STUCK * self._elements


def _watched(model: ir.Model, limit: int) -> tuple[list[ir.Value], list[ir.Value]]:
    """Float-looking outputs of nodes that depend on the inputs' values, evenly spread; conditions of If nodes."""
    found: list[ir.Value] = []
    conditions: dict[ir.Value, None] = {}
    for node, depends in live_values(model):
        if node.op_type == "If" and node.inputs[0] is not None and node.inputs[0].producer() is not None:
            conditions[node.inputs[0]] = None
        if depends:
            found += [
                v
                for v in node.outputs
                if v.name and isinstance(v.type, ir.TensorType | None) and (v.dtype is None or v.dtype.is_floating_point())
            ]
    return spread(found, limit), list(conditions)


def spread(items: list, limit: int) -> list:
    """At most `limit` of the items, evenly spread, the last one among them."""
    if len(items) <= limit:
        return items
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def _bounded(value: ir.Value) -> tuple[float, ...]:
    """The ends of the range of the operator that makes a value; none for operators without such."""
    ends = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Relu": (0.0,)}
    return ends.get(value.producer().op_type, ()) if value.producer() is not None else ()


def _watch(model: ir.Model, outputs: list[ir.Value], extra: list[ir.Value]) -> None:
    """Makes the values outputs of the graph, beside its own. Their types are left to the runtime to work out."""
    del model.graph.outputs[len(outputs) :]
    model.graph.outputs.extend(extra)


def _count(result: Coverage, node: ir.Node, taken: set[bool]) -> None:
    for key, branch in (("then_branch", True), ("else_branch", False)):
        if key not in node.attributes:
            continue
        nodes = sum(1 for _ in node.attributes[key].as_graph().all_nodes())
        result.branch_nodes += nodes
        if branch in taken:
            result.branch_nodes_run += nodes
        else:
            result.never_run.append(f"{node.name or node.outputs[0].name}: {key}")
