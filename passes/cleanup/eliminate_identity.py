"""Identity: gone wherever the name of a graph output does not hang on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, var

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class EliminateIdentity(Rewrite):
    """Remove Identity nodes, keeping the names of graph outputs."""

    name = "eliminate-identity"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_identity

        eliminate_identity.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Identity", var("x"), bind="identity"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        editor.replace(match.root.outputs[0], match["x"])
