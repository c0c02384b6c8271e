"""The units of a candidate: which nodes each application narrowed, and which values go between them and what stays in float."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graphopt.pipeline.runner import Application, Candidate
from graphopt.rewriting.base import node_label
from graphopt.rewriting.changes import application

_PREFIX = "graphopt.node."
_ROUNDS = "DynamicQuantizeLinear"
#: Operators that convert; they belong to values, not to units.
CONVERTING = ("QuantizeLinear", "DequantizeLinear", _ROUNDS)
_TAIL = 3  # nodes behind the one that gives a unit its name, at the most


class View:
    """The main graph of a candidate, nodes by their place in it.

    Attributes:
        nodes: in order. producer: of a value, by name. readers: likewise, each once.
        inputs, outputs: names of those of the graph.
    """

    def __init__(self, model: ir.Model) -> None:
        graph = model.graph
        self.nodes = list(graph)
        self.inputs = {v.name for v in graph.inputs}
        self.outputs = {v.name for v in graph.outputs}
        self.producer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for value in node.outputs:
                if value.name:
                    self.producer[value.name] = i
            for name in dict.fromkeys(v.name for v in _inputs(node) if v.name):
                self.readers.setdefault(name, []).append(i)

    def output(self, i: int) -> str:
        """The name of the first result of a node."""
        return next((v.name for v in self.nodes[i].outputs if v.name), "")

    @contextlib.contextmanager
    def numbered(self) -> Iterator[None]:
        """Inside, each node of the main graph is named by its place, so that the runtime's names can be traced back."""
        names = [node.name for node in self.nodes]
        for i, node in enumerate(self.nodes):
            node.name = f"{_PREFIX}{i}"
        try:
            yield
        finally:
            for node, name in zip(self.nodes, names, strict=True):
                node.name = name


def place_in(name: str) -> int | None:
    """The node that a name of the runtime's goes back to; None: it goes back to none."""
    if not name.startswith(_PREFIX):
        return None
    digits = name[len(_PREFIX) :]
    length = next((i for i, c in enumerate(digits) if not c.isdigit()), len(digits))
    return int(digits[:length]) if length else None


@dataclass(eq=False)
class Value:
    """A value that is quantized somewhere in a candidate.

    Attributes:
        name: its name where nothing is narrowed.
        producer: the unit that gives it; None: something in float does.
        readers: units that read it on its grid.
        in_float: places of other nodes that read it, -1 for the graph's outputs.
        pair: places of the nodes that quantize and dequantize it.
        shape: as far as it is known; None: not at all.
    """

    name: str
    producer: int | None
    readers: tuple[int, ...]
    in_float: tuple[int, ...]
    pair: frozenset[int]
    shape: tuple[int, ...] | None


@dataclass
class Layout:
    """The units of a candidate, narrowed or held back.

    Attributes:
        applications: of passes that narrow, by number.
        nodes: by number, the places of its nodes, those that quantize and dequantize not among them.
        unit_of: place of a node -> number.
        narrow: the numbers that are narrowed in this candidate.
        values: by name, what is quantized.
        sizes: of named dimensions of inputs.
    """

    view: View
    applications: dict[int, Application]
    nodes: dict[int, list[int]] = field(default_factory=dict)
    unit_of: dict[int, int] = field(default_factory=dict)
    narrow: frozenset[int] = frozenset()
    values: dict[str, Value] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def narrowing(candidate: Candidate, names: Iterable[str]) -> dict[int, Application]:
    """The applications of passes, by number."""
    wanted = set(names)
    return {a.number: a for a in candidate.applications if a.pass_name in wanted}


def lay_out(
    candidate: Candidate, applications: dict[int, Application], results: dict[int, str] | None = None,
    feeds: Mapping[str, Any] | None = None,
) -> Layout:  # fmt: skip
    """The units in a candidate.

    Args:
        candidate: with some of the applications, or none.
        applications: of all units, whether they happened here or not.
        results: number -> the name of the unit's result, as `results_of` found it where all are narrowed: what is held
            back is found by its node's label, and by that. A unit that is not found has no nodes.
        feeds: inputs that say how large named dimensions are.
    """
    view = View(candidate.model.graph)
    layout = Layout(view, applications, sizes=_sizes(candidate.model.graph, feeds or {}))
    done = {a.number for a in candidate.applications}
    layout.narrow = frozenset(n for n in applications if n in done)
    for i, node in enumerate(view.nodes):
        number = application(node)
        if number in layout.narrow and node.op_type not in CONVERTING:
            layout.nodes.setdefault(number, []).append(i)
            layout.unit_of[i] = number
    held = {a.label: n for n, a in applications.items() if n not in layout.narrow}
    for i, node in enumerate(view.nodes):
        number = held.get(node_label(node))
        if number is not None and number not in layout.nodes:
            layout.nodes[number] = _chain(view, i, (results or {}).get(number))
            layout.unit_of.update(dict.fromkeys(layout.nodes[number], number))
    _find_values(layout)
    return layout


def results_of(layout: Layout) -> dict[int, str]:
    """By number, the name that a unit's result has whether it is narrowed or not."""
    made = {v.producer: v.name for v in layout.values.values() if v.producer is not None}
    return {n: made.get(n) or layout.view.output(places[-1]) for n, places in layout.nodes.items()}


def _sizes(model: ir.Model, feeds: Mapping[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        shape = getattr(feeds.get(value.name or ""), "shape", ())
        for dim, size in zip(value.shape or (), shape, strict=False):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found.setdefault(str(dim.value), int(size))
    return found


def _chain(view: View, first: int, result: str | None) -> list[int]:
    """The node that a unit is named after and what else belongs to it, up to the one that gives its result."""
    chain = [first]
    while result is not None and view.output(chain[-1]) != result:
        readers = view.readers.get(view.output(chain[-1]), [])
        if len(readers) != 1 or len(chain) > _TAIL:
            return [first]
        chain.append(readers[0])
    return chain


def _find_values(layout: Layout) -> None:
    view = layout.view
    for i, node in enumerate(view.nodes):
        if node.op_type == _ROUNDS and node.inputs[0] is not None and application(node) in layout.applications:
            _rounded_at_run(layout, i, node.inputs[0])
            continue
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None or application(node) not in layout.applications:
            continue
        source = node.inputs[0].name or ""
        pairs = [j for j in view.readers.get(view.output(i), []) if view.nodes[j].op_type == "DequantizeLinear"]
        made = view.producer.get(source)
        producer = layout.unit_of.get(made) if made is not None else None
        if producer not in layout.narrow:
            producer_name = source
        else:
            producer_name = view.output(pairs[0]) if pairs else source  # the pair took over the name of what it rounds
        readers, in_float = [], []
        for copy in (view.output(j) for j in pairs):
            for j in view.readers.get(copy, []):
                unit = layout.unit_of.get(j)
                (readers if unit in layout.narrow else in_float).append(unit if unit in layout.narrow else j)
            if copy in view.outputs:
                in_float.append(-1)
        known = layout.values.get(producer_name)
        pair = frozenset((i, *pairs))
        if known is not None:
            readers, in_float, pair = [*known.readers, *readers], [*known.in_float, *in_float], pair | known.pair
        layout.values[producer_name] = Value(
            producer_name, producer, tuple(dict.fromkeys(readers)), tuple(dict.fromkeys(in_float)), pair,
            shape_of(node.inputs[0], layout.sizes),
        )  # fmt: skip


def _rounded_at_run(layout: Layout, place: int, source: ir.Value) -> None:
    """A value of which a copy on a grid of its own is made when it comes, once for all units that read it."""
    made = [v.name for v in layout.view.nodes[place].outputs if v.name]
    units = (layout.unit_of.get(j) for name in made for j in layout.view.readers.get(name, []))
    readers = tuple(dict.fromkeys(u for u in units if u is not None))
    name = f"{source.name} as it comes"
    layout.values[name] = Value(name, None, readers, (), frozenset({place}), shape_of(source, layout.sizes))


def shape_of(value: ir.Value | None, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of a value, with the sizes of named dimensions; None where one is not known."""
    if value is None or value.shape is None:
        return None
    found = [sizes.get(str(d.value)) if isinstance(d, ir.SymbolicDim) else int(d) for d in value.shape]
    return None if None in found else tuple(found)  # type: ignore[arg-type]


def _inputs(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, what its subgraphs take from outside included."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        else:
            continue
        for graph in graphs:
            own = {v for inner in graph for v in inner.outputs} | set(graph.inputs) | set(graph.initializers.values())
            yield from (v for inner in graph for v in _inputs(inner) if v not in own)
