"""Regions of operators that work in any layout, and what it saves to turn one over.

A region grows from a value that is to be had in another layout, over the operators that make it and those that consume
it, as far as rules (`flips`) reach. On its border, Transposes that are there may go and others may be needed. Where the
whole does not pay, or a part of it does as well, operators are taken off its border as long as that costs nothing: a
local search for the smallest cut.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import onnx_ir as ir

from graphopt.rewriting import Context, constant_tensor, use_count

from .absorb_transposes import can_absorb
from .flips import Flip, Rule
from .layout_rules import data_inputs
from .permutations import Perm, compose, inverse, is_identity, moves_ones_only, perm_of

_STAND_IN: Final = 32  # of a dimension that is not known
_OVERHEAD: Final = 1 << 12  # bytes that could be moved in the time that a node takes beside its work
_MANY: Final = 64  # consumers; a value that has more stays as it is
_WORTH: Final = 16 * _OVERHEAD  # what a move that does away with no Transpose has to save
_COPIED: Final = 1 << 16  # bytes of a constant that may be stored twice, in both layouts


@dataclass
class Region:
    """Operators that change layout together.

    Attributes:
        values: the layout that each value within or on the border is to have, in terms of the one it has.
        flips: the operators, and what they become.
    """

    graph: ir.Graph
    values: dict[ir.Value, Perm] = field(default_factory=dict)
    flips: dict[ir.Node, Flip] = field(default_factory=dict)

    def takes(self, node: ir.Node, index: int) -> bool:
        """Whether an input of `node` is wanted in the new layout."""
        flip = self.flips.get(node)
        return flip is not None and flip.inputs[index] is not None

    def enters(self, value: ir.Value) -> bool:
        """Whether operators of the region take `value`, made outside of it, in the new layout."""
        return value in self.values and not self.makes(value) and any(self.takes(u.node, u.idx) for u in value.uses())

    def makes(self, value: ir.Value) -> bool:
        """Whether an operator of the region gives `value` in the new layout."""
        node = value.producer()
        flip = self.flips.get(node) if node is not None else None
        return flip is not None and flip.outputs[value.index() or 0] is not None


class Regions:
    """The regions of a model, under one set of rules."""

    def __init__(self, context: Context, rules: Mapping[str, Rule], limit: int, absorbs: bool) -> None:
        """`absorbs`: Transposes before flattened inputs of products cost nothing, because the weights will take them."""
        self._context, self._rules, self._limit, self._absorbs = context, rules, limit, absorbs
        self._sizes: dict[ir.Value, tuple[tuple[int | str, ...] | None, int]] = {}

    # --- growth -------------------------------------------------------------------------------------------------

    def grow(self, seed: ir.Value, perm: Perm, graph: ir.Graph) -> Region:
        """The operators that can all work in the layout that `seed` has under `perm`."""
        region = Region(graph, {seed: perm})
        pending = deque([seed])
        while pending and len(region.flips) < self._limit:
            value = pending.popleft()
            node = value.producer()
            for node in (node, *(usage.node for usage in value.uses())):
                if node is not None and node not in region.flips:
                    pending.extend(self._join(region, node))
        return region

    def _join(self, region: Region, node: ir.Node) -> list[ir.Value]:
        """Take an operator in, if it can work in the layouts that its neighbours have; the values that come with it."""
        rule = self._rules.get(node.op_type)
        if rule is None or node.domain != "" or node.graph is not region.graph:
            return []
        numbers = data_inputs(node.op_type, len(node.inputs))
        source = next((region.values[node.inputs[i]] for i in numbers if node.inputs[i] in region.values), None)
        target = next((region.values[v] for v in node.outputs if v in region.values), None)
        if source is None and target is None:
            return []
        flip = rule(self._context, node, source, target)
        if flip is None:
            return []
        found: dict[ir.Value, Perm] = {}
        ports = [*zip((node.inputs[i] for i in numbers), flip.inputs), *zip(node.outputs, flip.outputs)]
        for value, perm in ports:
            if value is None:
                continue
            if use_count(value) > _MANY:
                return []
            if constant_tensor(value) is not None:
                if perm is not None and not self._may_copy(value):
                    return []
                continue
            perm = self._moving(value, perm)
            if found.get(value, perm) != perm or region.values.get(value, perm) != perm:
                return []  # wanted in two layouts
            if perm is not None:
                found[value] = perm
        flip.inputs = [self._moving(v, p) for v, p in zip(node.inputs, flip.inputs)]
        flip.outputs = [self._moving(v, p) for v, p in zip(node.outputs, flip.outputs)]
        region.flips[node] = flip
        new = [v for v in found if v not in region.values]
        region.values.update(found)
        return new

    def _moving(self, value: ir.Value | None, perm: Perm | None) -> Perm | None:
        """A layout, or None where a value is the same in it."""
        if perm is None or is_identity(perm):
            return None
        if value is None:
            return perm
        dims, _ = self._size(value)
        return None if dims is not None and all(d == 1 for d in dims) else perm

    def _may_copy(self, value: ir.Value) -> bool:
        tensor = constant_tensor(value)
        assert tensor is not None
        return tensor.dtype != ir.DataType.STRING and (use_count(value) == 1 or tensor.nbytes <= _COPIED)

    # --- cost -----------------------------------------------------------------------------------------------------

    def gain(self, region: Region) -> tuple[int, int]:
        """What turning the region over saves: Transposes, and bytes moved by them with a little for each."""
        parts = [self._change(region, value) for value in region.values]
        parts += [self._penalty(node, flip) for node, flip in region.flips.items()]
        return -sum(c for c, _ in parts), -sum(b for _, b in parts)

    def pays(self, region: Region) -> bool:
        """Whether to turn a region over: fewer Transposes at no higher cost, or as many and far less to move."""
        saved, cost = self.gain(region)
        return (saved > 0 and cost > 0) or (saved == 0 and cost >= _WORTH)

    def _penalty(self, node: ir.Node, flip: Flip) -> tuple[int, int]:
        return (0, 2 * self._size(node.outputs[0])[1]) if flip.loses_last else (0, 0)

    def _change(self, region: Region, value: ir.Value) -> tuple[int, int]:
        """Transposes of one value, and their cost: afterwards less now."""
        perm = region.values[value]
        uses = value.uses()
        outside = [u.node for u in uses if not region.takes(u.node, u.idx)]
        less: list[tuple[int, int]] = []
        more: list[tuple[int, int]] = []
        if region.makes(value):
            plain = value.is_graph_output()
            for node in outside:
                second = self._transpose(region, node)
                if second is not None and len(second) == len(perm):
                    if region.enters(node.outputs[0]):
                        continue  # its other end counts it
                    less.append(self._one(second, value, into=node))
                    more.append(self._one(compose(inverse(perm), second), value, perm, node))
                elif not is_shape(node) and not (self._absorbs and can_absorb(self._context, node, perm)):
                    plain = True
            if plain:
                more.append(self._one(perm, value))
        elif len(outside) < len(uses):
            node = value.producer()
            first = self._transpose(region, node) if node is not None else None
            if first is not None and len(first) == len(perm):
                x = node.inputs[0]  # type: ignore[union-attr]
                stays = bool(outside) or value.is_graph_output()
                turned = region.values[x] if x in region.values and region.makes(x) else None
                now = first if turned is None else compose(inverse(turned), first)
                more.append(self._one(compose(now, perm), x, turned))  # type: ignore[arg-type]
                if stays and turned is not None:
                    more.append(self._one(now, x, turned))  # type: ignore[arg-type]
                if not stays or turned is not None:
                    less.append(self._one(inverse(first), value))
            else:
                more.append(self._one(perm, value))
        return sum(c for c, _ in more) - sum(c for c, _ in less), sum(b for _, b in more) - sum(b for _, b in less)

    def _transpose(self, region: Region, node: ir.Node) -> Perm | None:
        return perm_of(self._context, node) if is_transpose(node) and node.graph is region.graph else None

    def _one(self, perm: Perm, value: ir.Value, layout: Perm | None = None, into: ir.Node | None = None) -> tuple[int, int]:
        """A Transpose of `value` (in `layout`) by `perm`, the node `into`: 1, or 0 where nothing is to be done, and its cost."""
        if is_identity(perm):
            return 0, 0
        if into is not None and _for_matmul(into, perm):
            return 1, _OVERHEAD
        dims, size = self._size(value)
        if dims is not None and layout is not None:
            dims = tuple(dims[a] for a in layout)
        return 1, _OVERHEAD if moves_ones_only(perm, dims) else size

    def _size(self, value: ir.Value) -> tuple[tuple[int | str, ...] | None, int]:
        """The shape of a value, and what it costs to move it."""
        found = self._sizes.get(value)
        if found is None:
            dims, dtype = self._context.dims(value), self._context.dtype(value)
            elements = math.prod(d if isinstance(d, int) else _STAND_IN for d in dims or (_STAND_IN,) * 4)
            found = self._sizes[value] = dims, _OVERHEAD + int(elements * (4 if dtype is None else dtype.itemsize))
        return found

    # --- the smallest that pays -------------------------------------------------------------------------------------

    def trim(self, region: Region) -> None:
        """Take off what costs nothing to leave as it is."""
        pending = deque(region.flips)
        queued = set(pending)
        cost = {v: self._change(region, v)[1] for v in region.values}
        while pending:
            node = pending.popleft()
            queued.discard(node)
            flip = region.flips.get(node)
            if flip is None:
                continue
            values = self._touched(region, node)
            del region.flips[node]
            now = {v: self._change(region, v)[1] for v in values}
            if sum(now.values()) > sum(cost[v] for v in values) + self._penalty(node, flip)[1]:
                region.flips[node] = flip
                continue
            cost.update(now)
            for value in values:
                for near in (value.producer(), *(u.node for u in value.uses())):
                    if near in region.flips and near not in queued:
                        queued.add(near)
                        pending.append(near)

    def _touched(self, region: Region, node: ir.Node) -> dict[ir.Value, None]:
        """The values of a region whose cost hangs on whether an operator is in it."""
        found = dict.fromkeys(v for v in (*node.inputs, *node.outputs) if v is not None and v in region.values)
        for value in list(found):
            producer = value.producer()
            near = [producer.inputs[0]] if is_transpose(producer) else []  # type: ignore[union-attr]
            near += [u.node.outputs[0] for u in value.uses() if is_transpose(u.node)]
            found.update(dict.fromkeys(v for v in near if v in region.values))
        return found

    def parts(self, region: Region) -> list[Region]:
        """The connected parts of what was left of a region, each with the values it touches."""
        left = dict(region.flips)
        found = []
        while left:
            node = next(iter(left))
            part = Region(region.graph)
            pending = [node]
            while pending:
                node = pending.pop()
                if node not in left:
                    continue
                part.flips[node] = left.pop(node)
                for value in (*node.inputs, *node.outputs):
                    if value is not None and value in region.values:
                        part.values[value] = region.values[value]
                        pending.extend(n for n in (value.producer(), *(u.node for u in value.uses())) if n in left)
            found.append(part)
        return found


def _for_matmul(node: ir.Node, perm: Perm) -> bool:
    """Whether a Transpose turns matrices for products alone: runtimes hand that to the product."""
    rank = len(perm)
    if rank < 2 or perm != (*range(rank - 2), rank - 1, rank - 2) or not 0 < use_count(node.outputs[0]) <= _MANY:
        return False
    return all(u.node.op_type in ("MatMul", "Gemm") for u in node.outputs[0].uses())


def is_transpose(node: ir.Node | None) -> bool:
    """Whether a node is a Transpose of the standard."""
    return node is not None and node.op_type == "Transpose" and node.domain == ""


def is_shape(node: ir.Node) -> bool:
    """Whether a node asks for the whole shape of a value, which can be put in order again at no cost."""
    return node.op_type == "Shape" and node.domain == "" and not node.attributes
