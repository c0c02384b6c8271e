"""Expand and Tile before an operator that broadcasts by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, option

_BROADCASTING = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
    "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
)

_STAND_IN = 64  # for a size that is not known
_FEW = 64  # runs that cost less than a node


@dataclass(frozen=True)
class EliminateBroadcasts(Rewrite):
    """Remove Expand and Tile before element-wise operators that repeat their inputs to the same shape by themselves."""

    name = "eliminate-broadcasts"

    min_run: int = option(128, "elements in a row that are repeated, or not, alike: kernels pay for each such run", minimum=1)

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
            before, after = context.dims(source), context.dims(value)
            if before is None or after is None or not _is_repeated(before, after) or not _same_result(before, after, others):
                continue
            result = context.dims(node.outputs[0]) or after
            run = _run(before, result)
            if run >= self.min_run or _size(result) <= _FEW * run:
                values[i] = source
                editor.set_input(node, i, source)
                match.nodes.append(producer)


_Dims = tuple[int | str, ...]


def _is_repeated(before: _Dims, after: _Dims) -> bool:
    """Whether every dimension is as it was, or was 1."""
    return len(before) <= len(after) and all(b in (1, a) for b, a in zip(before, after[len(after) - len(before) :]))


def _same_result(source: _Dims, repeated: _Dims, others: list[_Dims | None]) -> bool:
    """Whether the other inputs alone have each dimension that was repeated."""
    if any(o is None for o in others):
        return False
    for place in range(1, len(repeated) + 1):
        size = repeated[-place]
        had = source[-place] if place <= len(source) else None  # a dimension that is not there counts too
        if size == had or (size == 1 and had is None and any(len(o) >= place for o in others)):  # type: ignore[arg-type]
            continue
        if not any(len(o) >= place and o[-place] == size for o in others):  # type: ignore[arg-type, index]
            return False
    return True


def _size(dims: _Dims) -> int:
    return math.prod(d if isinstance(d, int) else _STAND_IN for d in dims)


def _run(source: _Dims, result: _Dims) -> int:
    """How many elements of the result, the last ones first, take either one element of the source or one each."""
    run, repeats = 1, None
    for place in range(1, len(result) + 1):
        size = result[-place]
        if size == 1:
            continue
        repeated = place > len(source) or source[-place] == 1
        if repeats is not None and repeated != repeats:
            break
        repeats = repeated
        run *= size if isinstance(size, int) else _STAND_IN
    return run
