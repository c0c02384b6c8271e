"""GELU spelled out with Erf or Tanh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, guards, op

from ..arguments import element_type
from .gelu import read
from .reading import needs_opset

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)  # what runtimes have an Erf for


@dataclass(frozen=True)
class FuseGelu(Rewrite):
    """Write x (1 + erf(x / sqrt 2)) / 2, and its approximation by tanh, as Gelu (opset 20)."""

    name = "fuse-gelu"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fuse_gelu

        fuse_gelu.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op(("Erf", "Tanh")),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        found = read(editor.context, match)
        if found is None:
            return
        x, last = found
        needs_opset(editor.context, match.root, "Gelu", 20)
        guards.require(element_type(editor.context, x) in _TYPES, "it is not known to be of float32 or float16")
        approximate = "tanh" if match.root.op_type == "Tanh" else None
        editor.replace(last.outputs[0], editor.node("Gelu", [x], {"approximate": approximate}, name=last.name, like=last.outputs[0]))
