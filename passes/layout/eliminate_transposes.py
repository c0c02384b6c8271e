"""Transposes in a row, that cancel or that one can do together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, var

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class EliminateTransposes(Rewrite):
    """Cancel and merge Transposes in a row."""

    name = "eliminate-transposes"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_transposes

        eliminate_transposes.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Transpose", op("Transpose", var("x"), bind="inner")),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        outer, x = match.root, match["x"]
        merged = _merged(match["inner"], outer) if match["inner"].graph is outer.graph else None
        if merged is None:
            return
        if merged != sorted(merged):
            x = editor.node("Transpose", [x], {"perm": merged}, name=outer.name)
        editor.replace(outer.outputs[0], x)


def _merged(inner: ir.Node, outer: ir.Node) -> list[int] | None:
    """The permutation that two Transposes make together; empty where they cancel at any rank, None where it is not known."""
    perms = [node.attributes.get("perm") for node in (inner, outer)]
    if any(p is not None and p.is_ref() for p in perms):
        return None
    first, second = (None if p is None else list(p.as_ints()) for p in perms)
    if first is None and second is None:
        return []  # both reverse
    rank = len(first if first is not None else second)  # type: ignore[arg-type]
    reverse = list(range(rank))[::-1]
    first, second = (reverse if p is None else p for p in (first, second))
    if len(first) != len(second):
        return None
    return [first[axis] for axis in second]
