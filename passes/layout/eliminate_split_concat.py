"""Split and Concat that undo each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Rewrite, op

from ..arguments import integer, ints


@dataclass(frozen=True)
class EliminateSplitConcat(Rewrite):
    """Join no pieces that a Split made of one value, and split no value into the pieces that a Concat joined."""

    name = "eliminate-split-concat"

    def patterns(self) -> Sequence[Pattern]:
        return (op("Concat"), op("Split", op("Concat", bind="concat"), ...))

    def rewrite(self, match: Match, editor: Editor) -> None:
        if "concat" in match:
            _split_of_concat(match.root, match["concat"], editor)
        else:
            _concat_of_split(match, editor)


def _concat_of_split(match: Match, editor: Editor) -> None:
    concat, context = match.root, editor.context
    inputs: list[ir.Value | None] = []
    splits = []
    values = list(concat.inputs)
    while values:
        value = values.pop(0)
        split = value.producer() if value is not None else None
        count = len(split.outputs) - 1 if split is not None else 0
        if (
            split is not None and split.op_type == "Split" and split.domain == "" and split.graph is concat.graph
            and value is split.outputs[0] and tuple(values[:count]) == tuple(split.outputs[1:]) and _one_axis(context, split, concat)
        ):
            del values[:count]
            value = split.inputs[0]
            splits.append(split)
        inputs.append(value)
    if not splits:
        return
    match.nodes = [concat, *splits]
    if len(inputs) == 1:
        editor.replace(concat.outputs[0], inputs[0])  # type: ignore[arg-type]
    else:
        editor.replace(concat.outputs[0], editor.node("Concat", inputs, dict(concat.attributes), name=concat.name))


def _split_of_concat(split: ir.Node, concat: ir.Node, editor: Editor) -> None:
    context = editor.context
    if len(split.outputs) != len(concat.inputs) or concat.graph is not split.graph or not _one_axis(context, split, concat):
        return
    axis = _axis(context, concat, concat.outputs[0], 1)
    sizes = []
    for value in concat.inputs:
        dims = context.dims(value)
        if dims is None or axis is None or not isinstance(dims[axis], int):
            return
        sizes.append(dims[axis])
    given = ints(context, split, "split", 1)
    if given is None:
        chunk = -(-sum(sizes) // len(sizes))
        given = tuple(min(chunk, sum(sizes) - i * chunk) for i in range(len(sizes)))
    if given == tuple(sizes):
        for old, new in zip(split.outputs, concat.inputs):
            editor.replace(old, new)  # type: ignore[arg-type]


def _one_axis(context: Context, split: ir.Node, concat: ir.Node) -> bool:
    first, second = _axis(context, split, split.inputs[0], 0), _axis(context, concat, concat.outputs[0], 1)
    return first is not None and first == second


def _axis(context: Context, node: ir.Node, value: ir.Value | None, default: int) -> int | None:
    """The axis counted from the front, of a rank that is known; or as it is given, where that is the front."""
    axis = integer(node, "axis", default)
    if axis is None or axis >= 0:
        return axis
    rank = context.rank(value)
    return None if rank is None else axis + rank
