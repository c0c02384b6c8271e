"""A Split of which one piece is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, is_used, op, var

from ..arguments import UNKNOWN, integer, ints


@dataclass(frozen=True)
class SplitToSlice(Rewrite):
    """Turn a Split of which only one output is used into a Slice."""

    name = "split-to-slice"

    def patterns(self) -> Sequence[Pattern]:
        return (op("Split", var("x"), ..., where=lambda node: len(node.outputs) > 1 and sum(map(is_used, node.outputs)) == 1),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, context = match.root, editor.context
        axis, sizes, version = integer(node, "axis", 0), ints(context, node, "split", 1), context.opset(node)
        dims = context.dims(match["x"])
        if axis is None or sizes == UNKNOWN or version < 10:
            return
        if sizes is None:
            size = dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
            if not isinstance(size, int):
                return
            chunk = -(-size // len(node.outputs))
            sizes = tuple(min(chunk, size - i * chunk) for i in range(len(node.outputs)))
        number = next(i for i, v in enumerate(node.outputs) if is_used(v))
        start = sum(sizes[:number])  # type: ignore[arg-type]
        name = node.name or "Split"
        arguments = {"starts": [start], "ends": [start + sizes[number]], "axes": [axis]}  # type: ignore[operator, index]
        y = editor.node("Slice", [match["x"], *(editor.constant(v, f"{name}/{what}") for what, v in arguments.items())], name=node.name)
        editor.replace(node.outputs[number], y)
