"""A reduction whose dimensions of 1 are put back, or taken out, by what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Dim, Editor, Match, Pattern, Rewrite, guards, op, var

from ..arguments import in_function, integer, ints, normal_axes

_REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceSumSquare", "ArgMax", "ArgMin",
)  # fmt: skip


@dataclass(frozen=True)
class MergeReductionsWithReshapes(Rewrite):
    """Let a reduction keep its dimensions, or drop them, where a Reshape, Squeeze, Unsqueeze or Flatten behind it does no more."""

    name = "merge-reductions-with-reshapes"

    def patterns(self) -> Sequence[Pattern]:
        return (op(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), op(_REDUCTIONS, var("x"), ..., bind="reduce"), ..., bind="shape"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, reduction, last, x = editor.context, match["reduce"], match["shape"], match["x"]
        keepdims = integer(reduction, "keepdims", 1)
        kept, dropped = _shapes(context, reduction, x)
        if kept is None or keepdims is None or in_function(context, x):
            return
        wanted = dropped if keepdims else kept
        if context.dims(last.outputs[0]) != wanted:
            return
        guards.same_graph(reduction, last)
        guards.only_consumer(reduction.outputs[0], "the reduced value", last)
        attributes = dict(reduction.attributes) | {"keepdims": 0 if keepdims else 1}
        output = last.outputs[0]
        new = editor.node(reduction.op_type, list(reduction.inputs), attributes, name=reduction.name, like=output)
        editor.replace(output, new)


Dims = tuple[Dim, ...] | None


def _shapes(context: Context, reduction: ir.Node, x: ir.Value) -> tuple[Dims, Dims]:
    """The shapes of what a reduction answers, with its dimensions and without; None: not known."""
    dims = context.dims(x)
    if dims is None:
        return None, None
    if reduction.op_type in ("ArgMax", "ArgMin"):
        axis = integer(reduction, "axis", 0)
        axes: object = None if axis is None else (axis,)
    else:
        axes = ints(context, reduction, "axes", 1)
    if not isinstance(axes, tuple) or not axes:
        return None, None
    reduced = normal_axes(axes, len(dims))
    kept = tuple(1 if i in reduced else d for i, d in enumerate(dims))  # type: ignore[operator]
    return kept, tuple(d for i, d in enumerate(dims) if i not in reduced)  # type: ignore[operator]
