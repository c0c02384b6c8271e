"""Identity: gone wherever the name of a graph output does not hang on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, var


@dataclass(frozen=True)
class EliminateIdentity(Rewrite):
    """Remove Identity nodes, keeping the names of graph outputs."""

    name = "eliminate-identity"

    def patterns(self) -> Sequence[Pattern]:
        return (op("Identity", var("x"), bind="identity"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        editor.replace(match.root.outputs[0], match["x"])
