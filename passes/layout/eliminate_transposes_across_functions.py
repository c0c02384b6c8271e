"""Transposes on both sides of an activation function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.rewriting import Effect

from .eliminate_transposes import CORRECTLY_ROUNDED, EliminateTransposes

# Kernels approximate them, and may do so differently in the body of a vector loop and in its remainder.
_APPROXIMATED = frozenset(
    (
        "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
        "Log", "Mish", "Reciprocal", "Selu", "Shrink", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Swish", "Tan", "Tanh",
    )
)


@dataclass(frozen=True)
class EliminateTransposesAcrossFunctions(EliminateTransposes):
    """Cancel and merge Transposes across activation functions too, whose last bit may depend on the layout."""

    name = "eliminate-transposes-across-functions"
    effect = Effect.ROUNDING

    across: ClassVar[frozenset[str]] = CORRECTLY_ROUNDED | _APPROXIMATED
