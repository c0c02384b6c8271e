"""A Min and a Max with constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, guards, op

from .ranges import KINDS, read_range, state_range


@dataclass(frozen=True)
class FuseClip(Rewrite):
    """Write a Min and a Max with constants, one behind the other or behind a Clip or Relu, as one Clip.

    One bound alone stays a Min or Max: a Clip without the other would turn an infinity into the largest finite number.
    """

    name = "fuse-clip"
    effect = Effect.ROUNDING  # the sign of a zero bound

    def patterns(self) -> Sequence[Pattern]:
        # A constant operand has no such producer, so at most one of the two patterns matches.
        mixed = op(("Min", "Max"), op(KINDS, bind="inner"), ..., commutative=True, bind="outer")
        return mixed, op(("Clip", "Relu"), op(("Min", "Max"), bind="inner"), ..., bind="outer")

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, inner, outer = editor.context, match["inner"], match["outer"]
        second = read_range(context, outer)
        if second is None or second[0] is not inner.outputs[0]:
            return
        first = read_range(context, inner)
        if first is None:
            return
        x, between = first
        both = between.then(second[1])
        if not np.isfinite([both.low, both.high]).all():
            return  # both bounds are on one side
        guards.same_graph(*match.nodes)
        guards.only_consumer(inner.outputs[0], "the value between them", outer)
        editor.replace(outer.outputs[0], state_range(editor, x, both, outer))
