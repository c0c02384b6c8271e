"""Constant folding: what does not depend on the inputs is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Context, Pass, option

from .folding import Folder

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute nodes whose inputs are all constant, where the result is certain to the bit and the file hardly grows.

    Values that shapes alone determine become constants too. Exact means: movement of data, whole numbers, comparisons,
    and the single float operations that IEEE 754 rounds in one way. What would grow the model stays as it is: weights
    behind Cast or DequantizeLinear, Expand, Tile, ConstantOfShape. Random operators and initializers that a caller may
    override are never folded, nor are casts to half precision, which runtimes may leave out. What a MatMul, Conv or LSTM
    would take as its weight is left to fold-float-constants: runtimes multiply by constant weights with other kernels, which
    round otherwise.
    """

    name = "fold-constants"
    kinds = frozenset({"onnx", "torch"})

    max_growth_bytes: int = option(65536, "bytes by which one folded constant may grow the model", minimum=0)
    max_total_growth: float = option(0.01, "growth of the whole model, as a part of the bytes of its weights", minimum=0, maximum=10)

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fold_constants

        fold_constants.run(context, self.max_growth_bytes, self.max_total_growth, exact=True)

    def run(self, context: Context) -> None:
        Folder(context, self.max_growth_bytes, self.max_total_growth, exact=True).run()
