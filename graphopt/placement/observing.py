"""From attributed kernels to costs of units and conversions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from graphopt.placement.attribution import FLOAT, Attributed, changed_nodes, fused_behind, is_heavy, near
from graphopt.placement.conversions import Conversions, pool
from graphopt.placement.cut import Costs, Crossing
from graphopt.placement.units import Value

_POOLING = ("auto_pad", "ceil_mode", "kernel_shape", "pads", "strides")


@dataclass
class Observed:
    """What was measured of one candidate, in milliseconds: units in the precision that they have there, conversions that it has.

    up, down: by the name of the value.
    """

    unit: dict[int, float] = field(default_factory=dict)
    up: dict[str, float] = field(default_factory=dict)
    down: dict[str, float] = field(default_factory=dict)


def observe(found: Attributed, plain: Attributed | None = None) -> Observed:
    """The costs in a candidate. plain: of the one in float, if this is another."""
    layout, seen = found.layout, Observed()
    for number, places in layout.nodes.items():
        seen.unit[number] = sum(found.ms.get(p, 0.0) for p in places)
    _share_fused(found, seen)
    paid_up = {v.producer: v.name for v in layout.values.values() if v.producer in layout.narrow and v.in_float}
    paid_down = [v for v in layout.values.values() if v.producer not in layout.narrow and v.readers]
    for name in paid_up.values():
        seen.up.setdefault(name, 0.0)
    for value in paid_down:
        seen.down[value.name] = seen.down.get(value.name, 0.0) + sum(found.ms.get(p, 0.0) for p in value.pair)
    for between in found.between:
        before, after = ({layout.unit_of.get(p) if p != FLOAT else None for p in side} for side in (between.before, between.after))
        from_narrow, to_narrow = before & layout.narrow, after & layout.narrow
        up = [paid_up[u] for u in from_narrow if u in paid_up] if after - layout.narrow else []
        down = [v for v in paid_down if to_narrow.intersection(v.readers)] if before - layout.narrow else []
        down = [v for v in down if v.pair & between.nodes] or down
        if up:
            _spread(seen.up, up, between.ms)
        elif down:
            _spread(seen.down, [v.name for v in down], between.ms)
        elif units := (after - {None}) or (before - {None}):  # a layout between units, or between a unit and its surroundings
            _spread(seen.unit, list(units), between.ms)
        else:
            places = [p for p in between.after if p != FLOAT]
            _spread(found.ms, places, between.ms)
    if plain is not None:
        for place, ms in changed_nodes(found, plain):
            names = near(layout, place)
            if up := [n for n in names if n in seen.up]:
                _spread(seen.up, up, ms)
            else:
                _spread(seen.down, [n for n in names if n in seen.down], ms)
    return seen


def _spread(into: dict, keys: list, ms: float) -> None:
    for key in keys:
        into[key] = into.get(key, 0.0) + ms / len(keys)


def _share_fused(found: Attributed, seen: Observed) -> None:
    """A kernel that runs several units counts for each of them alike."""
    layout = found.layout
    groups: dict[int, list[int]] = {}
    for number in layout.nodes:
        if (holder := fused_behind(found, number)) is not None:
            groups.setdefault(holder, []).append(number)
    for holder, numbers in groups.items():
        owner = layout.unit_of.get(holder)
        # The operators that others are fused into do the work: they get it all.
        if owner is None:
            ms = found.ms.pop(holder, 0.0)
        else:
            ms, seen.unit[owner] = seen.unit[owner], 0.0
            if is_heavy(layout, owner):
                numbers = [*numbers, owner]
        _spread(seen.unit, numbers, ms)


def combine(
    plain: Attributed, full: Attributed, seen: list[tuple[Attributed, Observed]], conversions: Conversions, rest: float, left: float = 0.0
) -> Costs:  # fmt: skip
    """The costs of every choice, from what was measured of some.

    Args:
        plain: the candidate in float. full: the one with everything narrowed.
        seen: what was observed of candidates, these two among them; where several know the same, the last counts.
        conversions: says what conversions cost that none of them has.
        rest: milliseconds of what is not attributed to units and conversions.
        left: by how much `rest` differs where everything is narrowed: smaller weights and values leave more of the caches to
            others. Units share in that by what they take in float.
    """
    in_float: dict[int, float] = {}
    narrow: dict[int, float] = {}
    up: dict[str, float] = {}
    down: dict[str, float] = {}
    for found, observed in seen:
        for number, ms in observed.unit.items():
            (narrow if number in found.layout.narrow else in_float)[number] = ms
        up |= observed.up
        down |= observed.down
    values = list(full.layout.values.values())
    whole = sum(in_float[n] for n in narrow if n in in_float)
    if whole > 0:
        narrow = {n: ms + left * in_float.get(n, 0.0) / whole for n, ms in narrow.items()}
    needed = {v.name: (list(_down(v, plain, full)), list(_up(v, plain, full))) for v in values}
    conversions.measure(case for both in needed.values() for cases in both for case in cases)
    crossings = []
    for value in values:
        costs = []
        for known, cases, unit in ((down, needed[value.name][0], value.readers[:1]), (up, needed[value.name][1], (value.producer,))):
            ms = known.get(value.name)
            if ms is None:
                ms = sum(conversions.ms(*case) for case in cases)
            for number in unit:
                if ms < 0 and number in narrow:  # what surrounds the unit gains more than the conversion takes
                    narrow[number] += ms
            costs.append(max(ms, 0.0))
        crossings.append(Crossing(value.name, value.producer, value.readers, bool(value.in_float), *costs))
    known_units = [n for n in full.layout.applications if n in in_float and n in narrow]
    low = min([0.0, *(narrow[n] for n in known_units)])  # a cut takes no cost below zero; all of them alike may be raised
    return Costs({n: in_float[n] - low for n in known_units}, {n: narrow[n] - low for n in known_units}, tuple(crossings),
                 rest + low * len(known_units))  # fmt: skip


def _down(value: Value, plain: Attributed, full: Attributed) -> Iterator[tuple[str, tuple[int, ...]]]:
    shape = _shape(value, plain, full)
    if shape is None:
        return
    yield "quantize", shape
    if any(full.channels_last(n) for n in _around(value)):
        yield "to-last", shape
    if value.producer is not None and plain.blocked(value.producer):
        yield "unblock", shape
    view = full.layout.view
    for unit in _around(value):
        node = view.nodes[full.layout.nodes[unit][0]]
        pooled = full.layout.values.get(node.inputs[0].name or "") if node.op_type == "MaxPool" and node.inputs[0] is not None else None
        if pooled is not None and (shape := _shape(pooled, plain, full)) is not None:
            yield pool({name: attribute.value for name, attribute in node.attributes.items() if name in _POOLING}), shape


def _up(value: Value, plain: Attributed, full: Attributed) -> Iterator[tuple[str, tuple[int, ...]]]:
    shape = _shape(value, plain, full)
    if shape is None or value.producer is None:
        return
    yield "dequantize", shape
    if any(full.channels_last(n) for n in _around(value)):
        yield "from-last", shape
    if any(plain.blocked(n) for n in value.readers):
        yield "block", shape


def _around(value: Value) -> list[int]:
    return [*([] if value.producer is None else [value.producer]), *value.readers]


def _shape(value: Value, plain: Attributed, full: Attributed) -> tuple[int, ...] | None:
    """The shape of a value as the model has it, or one with as many numbers."""
    if value.shape is not None or value.producer is None:
        return value.shape
    return plain.shape(value.producer) or full.shape(value.producer)
