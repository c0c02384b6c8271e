"""Constant folding of float arithmetic that no two implementations round alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Context, Effect, Pass, option

from .folding import Folder

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class FoldFloatConstants(Pass):
    """Compute what fold-constants leaves because it may round otherwise: Exp, MatMul, ReduceMean ..., and computed weights.

    Limits and exceptions are those of fold-constants otherwise.
    """

    name = "fold-float-constants"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})

    max_growth_bytes: int = option(65536, "bytes by which one folded constant may grow the model", minimum=0)
    max_total_growth: float = option(0.01, "growth of the whole model, as a part of the bytes of its weights", minimum=0, maximum=10)

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fold_constants

        fold_constants.run(context, self.max_growth_bytes, self.max_total_growth, exact=False)

    def run(self, context: Context) -> None:
        Folder(context, self.max_growth_bytes, self.max_total_growth, exact=False).run()
