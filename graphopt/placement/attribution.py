"""Whose time a kernel's is: a unit's, that of a conversion between units and what is in float, or that of neither."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from graphopt.measurement.traces import Kernel, Trace
from graphopt.placement.units import CONVERTING, Layout, View, place_in

#: What the runtime puts between kernels: conversions of type and of layout.
_BETWEEN = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "com.microsoft.nchwc::ReorderInput", "com.microsoft.nchwc::ReorderOutput"}
)
NARROW = frozenset({"uint8", "int8"})
_BLOCKED = "com.microsoft.nchwc::"
_HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})  # operators that others are fused into
_NEAR = 4  # nodes between an operator in float and the conversion that changes its kernel, at the most
FLOAT = -1  # stands for a graph's inputs and outputs


@dataclass
class Between:
    """Conversions that hang together, and the nodes on either side of them."""

    ms: float = 0.0
    before: set[int] = field(default_factory=set)
    after: set[int] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)


@dataclass
class Attributed:
    """The kernels of a trace, by the nodes of the candidate that they run.

    Attributes:
        ms: by place, of a node's own kernels.
        kernels: by place, the kernels.
        between: what converts between nodes.
    """

    layout: Layout
    ms: dict[int, float] = field(default_factory=dict)
    kernels: dict[int, list[Kernel]] = field(default_factory=dict)
    between: list[Between] = field(default_factory=list)

    def kind(self, place: int) -> frozenset[str]:
        """The operators that run a node; none where it is fused into another's."""
        return frozenset(k.operator for k in self.kernels.get(place, ()))

    def blocked(self, number: int) -> bool:
        """Whether a unit's kernel works on the blocked layout."""
        return any(k.operator.startswith(_BLOCKED) for p in self.layout.nodes.get(number, ()) for k in self.kernels.get(p, ()))

    def channels_last(self, number: int) -> bool:
        """Whether a unit's kernel works on channels as the last axis."""
        return any(k.channels_last for p in self.layout.nodes.get(number, ()) for k in self.kernels.get(p, ()))

    def shape(self, number: int) -> tuple[int, ...] | None:
        """The shape of what a unit's last kernel gave."""
        shapes = [k.shape for p in self.layout.nodes.get(number, ()) for k in self.kernels.get(p, ()) if k.shape is not None]
        return shapes[-1] if shapes else None


def attribute(layout: Layout, trace: Trace, plain: Attributed | None = None) -> Attributed:
    """Whose each kernel is.

    Args:
        layout: of the candidate that was traced, its nodes named by `View.numbered`.
        trace: of it.
        plain: the same of the candidate in float, if this is another: nodes in float that the runtime runs on narrow
            numbers, since they stand between conversions and units, count with the conversions then, less what they took there.
    """
    found = Attributed(layout)
    makers = {name: i for i, k in enumerate(trace.kernels) for name in k.outputs if name}
    readers: dict[str, list[int]] = {}
    for i, kernel in enumerate(trace.kernels):
        for name in dict.fromkeys(n for n in kernel.inputs if n):
            readers.setdefault(name, []).append(i)
    owners = {i: owner for i, k in enumerate(trace.kernels) if (owner := _owner(layout.view, k)) is not None}
    glue: dict[int, float] = {}
    for i, kernel in enumerate(trace.kernels):
        place = owners.get(i)
        if kernel.operator in _BETWEEN or (kernel.operator == "Transpose" and place is None):
            glue[i] = kernel.ms
        elif plain is not None and place is not None and place not in layout.unit_of and kernel.types & NARROW:
            before = _same(layout.view, place, plain.layout.view)
            if before is not None and not any(k.types & NARROW for k in plain.kernels.get(before, ())):
                glue[i] = kernel.ms - plain.ms.get(before, 0.0)
    for i, kernel in enumerate(trace.kernels):
        if i not in glue and (place := owners.get(i, _behind(kernel, trace, readers, glue, layout.view))) is not None:
            owners[i] = place
            found.ms[place] = found.ms.get(place, 0.0) + kernel.ms
            found.kernels.setdefault(place, []).append(kernel)
    for together in _connected(trace, glue, makers, readers):
        between = Between(sum(glue[i] for i in together), nodes={owners[i] for i in together if i in owners})
        for i in together:
            for name in trace.kernels[i].inputs:
                if name in makers and makers[name] not in glue:
                    between.before.add(owners.get(makers[name], FLOAT))
                elif name in layout.view.inputs:
                    between.before.add(FLOAT)
            for name in trace.kernels[i].outputs:
                between.after.update(owners.get(j, FLOAT) for j in readers.get(name, ()) if j not in glue)
                if name in layout.view.outputs:
                    between.after.add(FLOAT)
        found.between.append(between)
    return found


def _owner(view: View, kernel: Kernel) -> int | None:
    """The node that a kernel runs, by the names that the runtime gave it and its results."""
    place = place_in(kernel.name)
    if place is not None:
        return place if place < len(view.nodes) else None
    if kernel.operator in _BETWEEN or kernel.operator == "Transpose":
        return None
    name = kernel.name.removesuffix("_nchwc")  # a blocked kernel is named after the value that it gives
    for _ in range(3):
        if name in view.producer:
            return view.producer[name]
        name = name.rpartition("_")[0]
    return next((view.producer[n] for n in kernel.outputs if n in view.producer), None)


def _behind(kernel: Kernel, trace: Trace, readers: dict[str, list[int]], glue: dict[int, float], view: View) -> int | None:
    """The node whose result a kernel gives once its layout is what it was."""
    for name in kernel.outputs:
        for i in readers.get(name, ()):
            if i in glue:
                made = next((view.producer[n] for n in trace.kernels[i].outputs if n in view.producer), None)
                if made is not None:
                    return made
    return None


def _connected(trace: Trace, glue: dict[int, float], makers: dict[str, int], readers: dict[str, list[int]]) -> Iterator[list[int]]:
    """The kernels between others, in groups of those that hang together."""
    seen: set[int] = set()
    for start in glue:
        if start in seen:
            continue
        seen.add(start)
        group = [start]
        for i in group:  # grows as it is walked
            kernel = trace.kernels[i]
            near = [makers[n] for n in kernel.inputs if n in makers]
            near += [j for n in kernel.outputs for j in readers.get(n, ())]
            for j in near:
                if j in glue and j not in seen:
                    seen.add(j)
                    group.append(j)
        yield group


def _same(view: View, place: int, other: View) -> int | None:
    """The node of another candidate that gives the same value."""
    return other.producer.get(view.output(place))


def changed_nodes(found: Attributed, plain: Attributed) -> Iterator[tuple[int, float]]:
    """Nodes in float that other kernels run than where everything is in float, and by how many milliseconds more.

    Of those that the same kernels run a difference is noise.
    """
    view = found.layout.view
    carried = {p for b in found.between for p in b.nodes}
    for place in range(len(view.nodes)):
        if place in found.layout.unit_of or place in carried or view.nodes[place].op_type in CONVERTING:
            continue
        before = _same(view, place, plain.layout.view)
        if before is None or before in plain.layout.unit_of or found.kind(place) == plain.kind(before):
            continue
        yield place, found.ms.get(place, 0.0) - plain.ms.get(before, 0.0)


def near(layout: Layout, place: int) -> list[str]:
    """The quantized values nearest to a node in float, on either side."""
    view = layout.view
    pairs = {p: v.name for v in layout.values.values() for p in v.pair}
    level, seen = {place}, {place}
    for _ in range(_NEAR):
        around: set[int] = set()
        for at in level:
            around.update(view.producer[v.name] for v in view.nodes[at].inputs if v is not None and v.name in view.producer)
            for value in view.nodes[at].outputs:
                around.update(view.readers.get(value.name or "", ()))
        if found := sorted({pairs[p] for p in around if p in pairs}):
            return found
        level = {p for p in around if p not in layout.unit_of} - seen
        seen |= level
    return []


def is_heavy(layout: Layout, number: int) -> bool:
    """Whether a unit is a product, which is what kernels take their time for."""
    places = layout.nodes.get(number, [])
    return bool(places) and layout.view.nodes[places[0]].op_type in _HEAVY


def fused_behind(found: Attributed, number: int) -> int | None:
    """The node behind a unit's whose kernel runs the unit, too; None where the unit has kernels of its own, or none at all."""
    view, places = found.layout.view, found.layout.nodes.get(number, [])
    if any(p in found.kernels for p in places) or not is_heavy(found.layout, number):
        return None
    at = places[-1]
    for _ in range(_NEAR):
        readers = view.readers.get(view.output(at), [])
        if len(readers) != 1:
            return None
        at = readers[0]
        if at in found.kernels:
            return at
    return None
