"""Expand and Tile before an operator that broadcasts by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Rewrite, op

_BROADCASTING = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
    "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
)


@dataclass(frozen=True)
class EliminateBroadcasts(Rewrite):
    """Remove Expand and Tile before element-wise operators that repeat their inputs to the same shape by themselves."""

    name = "eliminate-broadcasts"

    def patterns(self) -> Sequence[Pattern]:
        return (op(_BROADCASTING),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, context = match.root, editor.context
        if context.opset(node) < 8:
            return
        values = list(node.inputs)
        for i, value in enumerate(values):
            producer = value.producer() if value is not None else None
            if producer is None or producer.op_type not in ("Expand", "Tile") or producer.domain != "" or producer.graph is not node.graph:
                continue
            source = producer.inputs[0]
            others = [context.dims(v) for j, v in enumerate(values) if j != i]
            if _is_repeated(context, source, value) and _same_result(context.dims(source), context.dims(value), others):
                values[i] = source
                editor.set_input(node, i, source)
                match.nodes.append(producer)


def _is_repeated(context: Context, source: ir.Value | None, value: ir.Value) -> bool:
    """Whether every dimension is as it was, or was 1."""
    before, after = context.dims(source), context.dims(value)
    if before is None or after is None or len(before) > len(after):
        return False
    return all(b in (1, a) for b, a in zip(before, after[len(after) - len(before) :]))


def _same_result(
    source: tuple[int | str, ...] | None, repeated: tuple[int | str, ...] | None, others: list[tuple[int | str, ...] | None]
) -> bool:
    """Whether the other inputs alone have each dimension that was repeated."""
    if source is None or repeated is None or any(o is None for o in others):
        return False
    for place in range(1, len(repeated) + 1):
        size = repeated[-place]
        had = source[-place] if place <= len(source) else None  # a dimension that is not there counts too
        if size == had or (size == 1 and had is None and any(len(o) >= place for o in others)):  # type: ignore[arg-type]
            continue
        if not any(len(o) >= place and o[-place] == size for o in others):  # type: ignore[arg-type, index]
            return False
    return True
