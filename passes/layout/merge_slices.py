"""Slices in a row, each of other axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Rewrite, constant_tensor, op, var
from graphopt.rewriting.guards import only_consumer

from ..arguments import ints, normal_axes

_Slice = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class MergeSlices(Rewrite):
    """Slice at once what two Slices in a row take along different axes."""

    name = "merge-slices"

    def patterns(self) -> Sequence[Pattern]:
        return (op("Slice", op("Slice", var("x"), ..., bind="inner"), ...),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        outer, inner = match.root, match["inner"]
        context = editor.context
        if context.opset(outer) < 10:
            return  # bounds are attributes, and there are no steps
        rank = context.rank(match["x"])
        first, second = _read(context, inner, rank), _read(context, outer, rank)
        if first is None or second is None or set(first[2]) & set(second[2]):
            return
        only_consumer(inner.outputs[0], "the value between", outer)
        name = outer.name or "Slice"
        arguments = [
            editor.constant([*a, *b], f"{name}/{what}") for what, a, b in zip(("starts", "ends", "axes", "steps"), first, second)
        ]
        editor.replace(outer.outputs[0], editor.node("Slice", [match["x"], *arguments], name=outer.name))


def _read(context: Context, node: ir.Node, rank: int | None) -> _Slice | None:
    """Starts, ends, axes (from the front) and steps, where all are constant."""
    if any(v is not None and constant_tensor(v) is None for v in node.inputs[1:]):
        return None
    starts, ends, axes, steps = (ints(context, node, name, i) for i, name in enumerate(("starts", "ends", "axes", "steps"), start=1))
    if not isinstance(starts, tuple) or not isinstance(ends, tuple):
        return None
    axes = normal_axes(tuple(range(len(starts))) if axes is None else axes, rank)  # type: ignore[arg-type]
    steps = (1,) * len(starts) if steps is None else steps
    if axes is None or not isinstance(steps, tuple) or not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    return (starts, ends, axes, steps) if len(set(axes)) == len(axes) else None
