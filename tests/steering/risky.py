"""Passes that may lose, for tests of how a run decides on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, op, option, var


def _behind(editor: Editor, match: Match, operator: str, count: int) -> None:
    value = match.root.outputs[0]
    new = editor.node(match.root.op_type, [match["x"]], like=value)
    new.producer().metadata_props["seen"] = "yes"
    for _ in range(count):
        new = editor.node(operator, [new], like=value)
    editor.replace(value, new)


@dataclass(frozen=True)
class Burden(Rewrite):
    """Put needless exact operations behind every Sigmoid."""

    name = "burden"
    effect = Effect.EXACT
    measured = True
    count: int = option(20, "how many", minimum=1, maximum=100)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Sigmoid", var("x"), where=lambda n: "seen" not in n.metadata_props),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        _behind(editor, match, "Abs", self.count)


@dataclass(frozen=True)
class Shadow(Rewrite):
    """Put an Identity behind every Abs, which the runtime removes again."""

    name = "shadow"
    effect = Effect.EXACT
    measured = True
    unmeasured = "leave-out"

    def patterns(self) -> Sequence[Pattern]:
        return (op("Abs", var("x"), where=lambda n: "seen" not in n.metadata_props),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        _behind(editor, match, "Identity", 1)
