"""Operators that select, pad, join or split, and here take everything there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Rewrite, op, var

from ..arguments import UNKNOWN, in_function, integer, ints, normal_axes

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_TO_THE_END = 2**31 - 1  # what the operator's specification recommends for "to the end of a dimension of unknown size"


@dataclass(frozen=True)
class EliminateNoopSelections(Rewrite):
    """Remove Slice and Gather of everything, Pad by nothing, Concat of one input and Split into one output."""

    name = "eliminate-noop-selections"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_noop_selections

        eliminate_noop_selections.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (
            op(("Slice", "Pad", "Gather"), var("x"), ...),
            op(("Split",), var("x"), ..., where=lambda node: len(node.outputs) == 1),
            op("Concat", var("x")),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, x = match.root, match["x"]
        if node.op_type in ("Concat", "Split") or _TESTS[node.op_type](editor.context, node, x):
            editor.replace(node.outputs[0], x)


def _slice(context: Context, node: ir.Node, x: ir.Value) -> bool:
    starts, ends = ints(context, node, "starts", 1), ints(context, node, "ends", 2)
    axes, steps = ints(context, node, "axes", 3), ints(context, node, "steps", 4)
    if UNKNOWN in (starts, ends, axes, steps) or starts is None or ends is None or len(starts) != len(ends):
        return False
    if any(s not in (0,) for s in starts) or any(s != 1 for s in steps or ()):
        return False
    if all(e >= _TO_THE_END for e in ends):
        return True
    dims = None if in_function(context, x) else context.dims(x)
    if dims is None:
        return False
    axes = tuple(range(len(starts))) if axes is None else normal_axes(axes, len(dims))
    if len(axes) != len(ends) or any(not 0 <= a < len(dims) for a in axes):
        return False
    return all(end >= _TO_THE_END or (isinstance(dims[a], int) and end >= dims[a]) for a, end in zip(axes, ends))


def _pad(context: Context, node: ir.Node, x: ir.Value) -> bool:
    pads = ints(context, node, "pads", 1)
    return isinstance(pads, tuple) and not any(pads)


def _gather(context: Context, node: ir.Node, x: ir.Value) -> bool:
    indices = node.inputs[1]
    axis = integer(node, "axis", 0)
    chosen = ints(context, node, "indices", 1)
    if axis is None or not isinstance(chosen, tuple) or context.rank(indices) != 1 or in_function(context, x):
        return False
    if chosen != tuple(range(len(chosen))):
        return False
    dims = context.dims(x)
    return dims is not None and -len(dims) <= axis < len(dims) and dims[axis] == len(chosen)


_TESTS = {"Slice": _slice, "Pad": _pad, "Gather": _gather}
