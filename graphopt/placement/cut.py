"""Which units are narrow so that units and conversions together take least: a minimum cut.

A unit has a cost in float and one narrowed. A value that crosses from one precision to the other is converted once,
however many consumers it has: down (quantized) where its producer is in float and a narrow unit reads it, up where its
producer is narrow and anything in float reads it. That is a cut in a network: units on the side of the source are
narrow, those on the side of the sink are in float. For each value two nodes more stand for "there is a copy in
float" and "there is a narrow copy"; an edge that cannot be cut ties a copy to each of its readers.
Source of the reduction: D. M. Greig, B. T. Porteous, A. H. Seheult, Exact maximum a posteriori estimation for binary
images, J. R. Stat. Soc. B 51 (1989).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Crossing:
    """A value that may be needed in both precisions.

    Attributes:
        name: of the value.
        producer: the unit that gives it; None: something that stays in float.
        readers: the units that read it where they are narrow on the narrow copy.
        read_in_float: something that stays in float reads it, too.
        down: milliseconds to quantize it. up: to dequantize it.
    """

    name: str
    producer: int | None
    readers: tuple[int, ...]
    read_in_float: bool
    down: float
    up: float


@dataclass(frozen=True)
class Costs:
    """The whole problem.

    Attributes:
        in_float, narrow: milliseconds by unit; infinite where a unit cannot be so.
        crossings: the values between units, and to and from what stays in float.
        rest: milliseconds of everything that the choice does not touch.
    """

    in_float: Mapping[int, float]
    narrow: Mapping[int, float]
    crossings: tuple[Crossing, ...] = ()
    rest: float = 0.0
    _touching: dict[int, list[Crossing]] = field(default_factory=dict, compare=False, repr=False)

    def total(self, chosen: Iterable[int]) -> float:
        """Milliseconds where the units that are `chosen` are narrow and all others in float."""
        narrow = frozenset(chosen)
        units = sum(self.narrow[u] if u in narrow else self.in_float[u] for u in self.in_float)
        return self.rest + units + sum(crossing_cost(c, narrow) for c in self.crossings)

    def saves(self, unit: int, chosen: frozenset[int]) -> float:
        """Milliseconds that narrowing one unit saves where the others are as `chosen`."""
        if not self._touching:
            for crossing in self.crossings:
                for touched in {crossing.producer, *crossing.readers} - {None}:
                    self._touching.setdefault(touched, []).append(crossing)
        crossings = self._touching.get(unit, [])
        with_it, without = chosen | {unit}, chosen - {unit}
        change = sum(crossing_cost(c, without) - crossing_cost(c, with_it) for c in crossings)
        return self.in_float[unit] - self.narrow[unit] + change


def crossing_cost(crossing: Crossing, narrow: frozenset[int]) -> float:
    """Milliseconds of the conversions of one value."""
    if crossing.producer in narrow:
        return crossing.up if crossing.read_in_float or any(r not in narrow for r in crossing.readers) else 0.0
    return crossing.down if any(r in narrow for r in crossing.readers) else 0.0


def cheapest(costs: Costs) -> frozenset[int]:
    """The units that are best narrow. Where several choices cost the same, the one with the fewest narrow units.

    Costs below zero are as good as zero.
    """
    import networkx as nx

    network = nx.DiGraph()
    network.add_nodes_from(("source", "sink", *costs.in_float))

    def edge(tail: object, head: object, capacity: float) -> None:
        if capacity <= 0:
            return
        # Turned round, so that the part which networkx gives, the largest that costs the least, is the one in float.
        known = network.get_edge_data(head, tail)
        if math.isinf(capacity) or (known is not None and "capacity" not in known):
            network.add_edge(head, tail)  # without a capacity: it cannot be cut
            if known is not None:
                known.pop("capacity", None)
        else:
            network.add_edge(head, tail, capacity=capacity + (known["capacity"] if known else 0.0))

    for unit in costs.in_float:
        edge("source", unit, costs.in_float[unit])
        edge(unit, "sink", costs.narrow[unit])
    for i, crossing in enumerate(costs.crossings):
        producer: object = "sink" if crossing.producer is None else crossing.producer
        down, up = ("down", i), ("up", i)
        edge(down, producer, crossing.down)
        for reader in crossing.readers:
            edge(reader, down, math.inf)
        if crossing.producer is None:
            continue
        edge(producer, up, crossing.up)
        for reader in crossing.readers:
            edge(up, reader, math.inf)
        if crossing.read_in_float:
            edge(up, "sink", math.inf)
    _, (_, narrow) = nx.minimum_cut(network, "sink", "source")
    return frozenset(u for u in costs.in_float if u in narrow)
