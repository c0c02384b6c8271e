"""Slices that together take all of an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Rewrite, apply, op, option, same_domain, var

from .slices import only_cut, taken


@dataclass(frozen=True)
class SlicesToSplit(Rewrite):
    """Turn Slices that cut a whole axis into pieces into one Split."""

    name = "slices-to-split"

    min_run: int = option(16, "elements in a row that the smallest piece must have", minimum=1)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Slice", var("x"), ...),)

    def run(self, context: Context) -> None:
        for x, axis, pieces in self._groups(context):
            nodes = [n for _, n in pieces]
            bound = {"x": x, "axis": axis, "pieces": sorted(pieces, key=lambda p: p[0].start)}
            apply(self, Match(nodes[0], nodes, bound), context)

    def rewrite(self, match: Match, editor: Editor) -> None:
        axis, pieces = match["axis"], match["pieces"]
        sizes = [len(places) for places, _ in pieces]
        inputs: list[ir.Value] = [match["x"]]
        attributes: dict[str, object] = {"axis": axis}
        if editor.context.opset(match.root) >= 13:
            inputs.append(editor.constant(sizes, f"{match.root.name or 'Slice'}/split"))
        else:
            attributes["split"] = sizes
        outputs = editor.node("Split", inputs, attributes, outputs=len(pieces))
        for (_, node), value in zip(pieces, outputs):
            editor.replace(node.outputs[0], value)

    def _groups(self, context: Context) -> list[tuple[ir.Value, int, list[tuple[range, ir.Node]]]]:
        """Slices of one value along one axis that are disjoint and complete, in the order of the graph."""
        found: dict[tuple[ir.Graph, ir.Value, int], list[tuple[range, ir.Node]]] = {}
        for node in context.index.of_types(("Slice",)):
            x = node.inputs[0] if node.inputs else None
            if x is None or not same_domain(node.domain, "") or context.scope(node).function is not None:
                continue
            cut, dims = only_cut(context, node), context.dims(x)
            if cut is None or dims is None or not isinstance(dims[cut[0]], int) or (len(dims) == 1 and x.dtype in _WHOLE):
                continue
            axis, size = cut[0], dims[cut[0]]
            places = taken(cut[1], size)  # type: ignore[arg-type]
            run = len(places) * math.prod(d if isinstance(d, int) else self.min_run for d in dims[axis + 1 :])
            if places and places.step == 1 and run >= self.min_run:
                found.setdefault((node.graph, x, axis), []).append((places, node))  # type: ignore[arg-type]
        chosen = {key: pieces for key, pieces in found.items() if _covers([p for p, _ in pieces], context.dims(key[1])[key[2]])}
        wanted = {n for pieces in chosen.values() for _, n in pieces}
        order = {n: i for graph in dict.fromkeys(k[0] for k in chosen) for i, n in enumerate(graph) if n in wanted}
        return [(x, axis, sorted(pieces, key=lambda p: order[p[1]])) for (_, x, axis), pieces in chosen.items()]


_WHOLE = (ir.DataType.INT64, ir.DataType.INT32)  # vectors of them are shapes, whose arithmetic has passes of its own


def _covers(places: list[range], size: int) -> bool:
    """Whether two or more runs follow each other from the first element of an axis to the last."""
    end = 0
    for run in sorted(places, key=lambda r: r.start):
        if run.start != end:
            return False
        end = run.stop
    return end == size and len(places) > 1
