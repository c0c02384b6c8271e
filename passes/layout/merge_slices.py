"""Slices in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Editor, Match, Pattern, Refuse, Rewrite, op, var
from graphopt.rewriting.guards import only_consumer

from .slices import cuts_of, joined

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class MergeSlices(Rewrite):
    """Slice at once what two Slices in a row take."""

    name = "merge-slices"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import merge_slices

        merge_slices.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Slice", op("Slice", var("x"), ..., bind="inner"), ...),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        outer, inner, x = match.root, match["inner"], match["x"]
        context = editor.context
        first, second = cuts_of(context, inner), cuts_of(context, outer)
        if first is None or second is None:
            return
        dims = context.dims(x)
        cuts = dict(first)
        for axis, cut in second.items():
            if axis in first:
                size = None if dims is None or axis >= len(dims) else dims[axis]
                joint = joined(first[axis], cut, size if isinstance(size, int) else None)
                if joint is None:
                    raise Refuse(f"what both take of axis {axis} hangs on its size, which is not known")
                cut = joint
            cuts[axis] = cut
        only_consumer(inner.outputs[0], "the value between", outer)
        starts, ends, steps = ([c[i] for c in cuts.values()] for i in range(3))
        arguments = {"starts": starts, "ends": ends, "axes": list(cuts), "steps": steps}
        if context.opset(outer) < 10:
            if any(s != 1 for s in steps):
                raise Refuse("in this opset, a Slice takes no steps")
            arguments.pop("steps")
            y = editor.node("Slice", [x], arguments, name=outer.name)
        else:
            name = outer.name or "Slice"
            y = editor.node("Slice", [x, *(editor.constant(v, f"{name}/{what}") for what, v in arguments.items())], name=outer.name)
        editor.replace(outer.outputs[0], y)
