"""A Clip or Relu of what a Clip or Relu has confined already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Match, Pattern, Refuse, Rewrite, guards, op

from .ranges import read_range, state_range


@dataclass(frozen=True)
class MergeClips(Rewrite):
    """Merge consecutive Clip and Relu into one that confines to what is left of both ranges."""

    name = "merge-clips"

    def patterns(self) -> Sequence[Pattern]:
        return (op(("Clip", "Relu"), op(("Clip", "Relu"), bind="inner"), ..., bind="outer"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, inner, outer = editor.context, match["inner"], match["outer"]
        guards.same_graph(*match.nodes)
        first, second = read_range(context, inner), read_range(context, outer)
        if first is None or second is None:
            return
        guards.only_consumer(inner.outputs[0], "the value between them", outer)
        x, between = first
        both = between.then(second[1])
        if both.low == both.high == 0:
            raise Refuse("only zero is left of both ranges, and its sign would change")
        editor.replace(outer.outputs[0], state_range(editor, x, both, outer))
