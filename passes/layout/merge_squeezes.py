"""Squeeze and Unsqueeze in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, var
from graphopt.rewriting.guards import only_consumer

from ..arguments import ints, normal_axes


@dataclass(frozen=True)
class MergeSqueezes(Rewrite):
    """Cancel Squeeze against Unsqueeze, and merge two of one kind."""

    name = "merge-squeezes"

    def patterns(self) -> Sequence[Pattern]:
        kinds = ("Squeeze", "Unsqueeze")
        return (op(kinds, op(kinds, var("x"), ..., bind="inner"), ...),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        outer, inner, x = match.root, match["inner"], match["x"]
        context = editor.context
        first, second = ints(context, inner, "axes", 1), ints(context, outer, "axes", 1)
        if not isinstance(first, tuple) or not isinstance(second, tuple) or not first or not second:
            return
        rank = context.rank(x)
        grow = len(first) if inner.op_type == "Unsqueeze" else 0
        shrink = len(first) - grow
        # Both count from the rank with the ones: of the first, its input (Squeeze) or output (Unsqueeze).
        a = normal_axes(first, None if rank is None else rank + grow)
        if inner.op_type != outer.op_type:
            b = normal_axes(second, None if rank is None else rank + grow - shrink + (len(second) if outer.op_type == "Unsqueeze" else 0))
            if set(first) == set(second) or (a is not None and b is not None and set(a) == set(b)):
                editor.replace(outer.outputs[0], x)
            return
        outer_rank = None if rank is None else rank + grow - shrink + (len(second) if outer.op_type == "Unsqueeze" else 0)
        b = normal_axes(second, outer_rank)
        if a is None or b is None:
            return
        only_consumer(inner.outputs[0], "the value between", outer)
        axes = _joined(outer.op_type, a, b)
        if context.opset(outer) >= 13:
            y = editor.node(outer.op_type, [x, editor.constant(axes, f"{outer.name or outer.op_type}/axes")], name=outer.name)
        else:
            y = editor.node(outer.op_type, [x], {"axes": axes}, name=outer.name)
        editor.replace(outer.outputs[0], y)


def _joined(kind: str, first: tuple[int, ...], second: tuple[int, ...]) -> list[int]:
    """The axes that do at once what `first` and then `second` do."""
    taken, moved = (second, first) if kind == "Unsqueeze" else (first, second)
    free = [i for i in range(max(taken) + max(moved) + len(taken) + 2) if i not in taken]
    return sorted([*taken, *(free[axis] for axis in moved)])


