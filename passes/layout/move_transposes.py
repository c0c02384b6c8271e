"""Transposes moved over operators that work in any layout, to where they meet others and cancel.

Exports from TensorFlow keep its layout, channels last, and wrap each convolution in two Transposes. Between two
convolutions, everything then works on channels last: a region. Turned over to channels first, it meets the Transposes
on its border with their inverses. The same is done for any permutation, and wherever fewer Transposes are left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.rewriting import Context, Effect, Pass, option

from .flips import Rule
from .layout_rules import EXACT
from .permutations import Perm, inverse, is_identity, perm_of
from .regions import Region, Regions, is_transpose
from .turning import Turning


@dataclass(frozen=True)
class MoveTransposes(Pass):
    """Move Transposes over operators that work in any layout, where fewer of them are left."""

    name = "move-transposes"

    rules: ClassVar[Mapping[str, Rule]] = EXACT

    limit: int = option(2000, "how many operators may change layout together", minimum=1)

    def run(self, context: Context) -> None:
        regions = Regions(context, self.rules, self.limit, self.effect is not Effect.EXACT)
        pending = deque(n for n in context.index.of_types(("Transpose",)) if is_transpose(n))
        seen: set[tuple[ir.Value, Perm]] = set()
        turns = 4 * (len(pending) + 16)  # each turn saves something: more would be a mistake in the count
        while pending and turns:
            node = pending.popleft()
            if node.graph is None or context.scope(node).function is not None:
                continue  # in a function, ranks are not known
            part = self._at(node, context, regions, seen)
            if part is None:
                continue
            turns -= 1
            seen.difference_update(part.values.items())
            near = [n for v in part.values for n in (v.producer(), *(u.node for u in v.uses()))]
            near += [v.producer() for n in near if is_transpose(n) for v in n.inputs]  # type: ignore[union-attr]
            turning = Turning(context, part, node)
            turning.run()
            for again in dict.fromkeys((*turning.made, *near, node)):
                if is_transpose(again) and again.graph is not None:
                    seen.difference_update(_seeds(again, perm_of(context, again)))
                    pending.append(again)

    def _at(self, node: ir.Node, context: Context, regions: Regions, seen: set[tuple[ir.Value, Perm]]) -> Region | None:
        """The region behind or before one Transpose that pays to turn over."""
        perm, graph = perm_of(context, node), node.graph
        if perm is None or graph is None or is_identity(perm):
            return None
        reason = None
        for seed, wanted in _seeds(node, perm):
            if (seed, wanted) in seen:
                continue
            region = regions.grow(seed, wanted, graph)
            seen.update(region.values.items())
            whole = len(region.flips)
            border = {n for v in region.values for n in (v.producer(), *(u.node for u in v.uses())) if is_transpose(n)}
            regions.trim(region)
            for part in regions.parts(region):
                if regions.pays(part):
                    if not context.log.permit(node):
                        return None
                    context.log.settled(node)
                    return part
            if whole and len(border) > 1:
                reason = f"moved over {whole} operators behind or before it, as many Transposes would be left"
        if reason is not None:
            context.log.refuse(node, reason)
        return None


def _seeds(node: ir.Node, perm: Perm | None) -> list[tuple[ir.Value, Perm]]:
    """What a Transpose would do without: its output as its input is, and its input as its output is."""
    x = node.inputs[0]
    return [] if perm is None or x is None else [(node.outputs[0], inverse(perm)), (x, perm)]
