"""GELU spelled out by the approximation with tanh, for opsets without Gelu."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, op

from ..fusion.gelu import read
from .contrib import require_type, state


@dataclass(frozen=True)
class FuseFastGelu(Rewrite):
    """Write the approximation of GELU by tanh as FastGelu, in all spellings; for opsets before 20, which has Gelu.

    ONNX Runtime 1.32 finds one of the spellings with Pow itself, and not those with products (x x x), which torch's
    older exporter writes. Measured on x86-64 with AVX-512, one thread: a GPT-2 of that exporter 1.05 times as fast for
    128 tokens, Magika 1.13.
    """

    name = "fuse-fast-gelu"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return (op("Tanh"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        found = read(editor.context, match)
        if found is None or editor.context.opset(match.root) >= 20:
            return  # Gelu says the same to every runtime
        x, last = found
        require_type(editor.context, x)
        state(editor, "FastGelu", [x], of=last)
