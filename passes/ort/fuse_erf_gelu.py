"""GELU spelled out with Erf, for opsets without Gelu."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, op

from .contrib import state_gelu


@dataclass(frozen=True)
class FuseErfGelu(Rewrite):
    """Write x (1 + erf(x / sqrt 2)) / 2 as the runtime's Gelu, in all spellings; for opsets before 20, which has Gelu.

    ONNX Runtime 1.32 does the same with the two commonest of them.
    """

    name = "fuse-erf-gelu"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return (op("Erf"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        state_gelu(match, editor, "Gelu")
