"""A graph written for the runtime to look inside: with inner values as its outputs, and its weights written once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt.formats import _reading
from graphopt.formats._writing import Writer
from graphopt.formats.onnx import Plan, parts

_WEIGHTS = "weights"


class Tapped:
    """Copies of a graph that give out inner values of the main graph; none of them holds the weights in memory.

    The weights go to one file in the folder, which the runtime maps; they pass through memory one at a time. The graph
    is not changed and may be changed afterwards.
    """

    def __init__(self, graph: ir.Model, folder: Path) -> None:
        self._folder = folder
        with _reading.paused_gc():
            plan = Plan(graph, list(parts(graph)), _WEIGHTS, everything=True)
            pieces = Writer(graph, plan.places).pieces()
            self._proto = onnx.ModelProto.FromString(b"".join(p if isinstance(p, bytes) else p.tobytes() for p in pieces))
        with open(folder / _WEIGHTS, "wb") as file:
            plan.write(file)
        self._count = itertools.count(1)

    def write(self, values: Sequence[str], *, sizes: bool = False, given: Sequence[str] = ()) -> Path:
        """A model with just these values as outputs, of the nodes that they need; with `sizes`, their numbers of
        elements (int64 scalars, in the same order) instead. What is `given`, all of it float32, is an input."""
        kept = self._proto.graph
        graph = onnx.GraphProto(name=kept.name or "graph")
        graph.node.extend(_needed(kept.node, values, frozenset(given)))
        graph.input.extend(kept.input)
        tensor = onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=onnx.TensorProto.FLOAT))
        graph.input.extend(onnx.ValueInfoProto(name=name, type=tensor) for name in given)
        used = set(itertools.chain.from_iterable(_reads(node) for node in graph.node))
        graph.initializer.extend(t for t in kept.initializer if t.name in used or _is_input(kept, t.name))
        graph.sparse_initializer.extend(t for t in kept.sparse_initializer if t.values.name in used)
        outputs = list(values)
        if sizes:
            outputs = [f"{name}/graphopt.size" for name in values]
            graph.node.extend(onnx.NodeProto(op_type="Size", input=[v], output=[o]) for v, o in zip(values, outputs, strict=True))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)  # the runtime works out their types
        model = onnx.ModelProto(ir_version=self._proto.ir_version, graph=graph)
        model.opset_import.extend(self._proto.opset_import)
        model.functions.extend(self._proto.functions)
        path = self._folder / f"tapped{next(self._count)}.onnx"
        path.write_bytes(model.SerializeToString())
        return path


def _is_input(graph: onnx.GraphProto, name: str) -> bool:
    return any(i.name == name for i in graph.input)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node consumes, captures of its subgraphs included (and names of their own, which do no harm)."""
    yield from node.input
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else attribute.graphs):
            for nested in inner.node:
                yield from _reads(nested)
            yield from (o.name for o in inner.output)


def _needed(nodes: Iterable[onnx.NodeProto], values: Sequence[str], given: frozenset[str]) -> list[onnx.NodeProto]:
    """The nodes that the values depend on, as far as it is not given, in their order, which is a topological one."""
    wanted, found = set(values), []
    for node in reversed(list(nodes)):
        if any(name in wanted and name not in given for name in node.output):
            wanted.update(_reads(node))
            found.append(node)
    return found[::-1]
