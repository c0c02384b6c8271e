"""A Slice of one, squeezed: a Gather of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, var
from graphopt.rewriting.guards import only_consumer

from ..arguments import ints, normal_axes
from .slices import TO_THE_END, only_cut


@dataclass(frozen=True)
class SliceToGather(Rewrite):
    """Take one element of an axis by a Gather instead of a Slice and a Squeeze."""

    name = "slice-to-gather"

    def patterns(self) -> Sequence[Pattern]:
        return (op("Squeeze", op("Slice", var("x"), ..., bind="slice"), ...),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        squeeze, cut_node, context = match.root, match["slice"], editor.context
        found, axes = only_cut(context, cut_node), ints(context, squeeze, "axes", 1)
        if found is None or not isinstance(axes, tuple) or len(axes) != 1:
            return
        axis, (start, end, step) = found
        if normal_axes(axes, context.rank(cut_node.outputs[0])) != (axis,):
            return
        if step != 1 or (end != start + 1 and not (start == -1 and end >= TO_THE_END)) or (start < 0 and end == 0):
            return  # one element or none, and then there would be nothing to squeeze
        only_consumer(cut_node.outputs[0], "the element", squeeze)
        index = editor.constant(np.asarray(start, np.int64), f"{squeeze.name or 'Gather'}/index")
        y = editor.node("Gather", [match["x"], index], {"axis": axis}, name=squeeze.name, like=squeeze.outputs[0])
        editor.replace(squeeze.outputs[0], y)
