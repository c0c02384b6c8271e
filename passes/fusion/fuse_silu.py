"""SiLU spelled out in torch programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Effect, Pass

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class FuseSilu(Pass):
    """Write x * sigmoid(x) as torch's SiLU, which passes over memory once (Elfwing, Uchibe and Doya 2017).

    Of ONNX models see fuse-quick-gelu.
    """

    name = "fuse-silu"
    effect = Effect.ROUNDING
    kinds = frozenset({"torch"})
    before_export = False  # the exporter would write it in parts again

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fuse_silu

        fuse_silu.run(context)
