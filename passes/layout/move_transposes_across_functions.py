"""Transposes moved over operators whose rounding may depend on the layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from graphopt.rewriting import Effect

from .flips import Rule
from .layout_rules import ROUNDING
from .move_transposes import MoveTransposes


@dataclass(frozen=True)
class MoveTransposesAcrossFunctions(MoveTransposes):
    """Move Transposes over sums, activation functions and the like too, whose last bit may depend on the layout."""

    name = "move-transposes-across-functions"
    effect = Effect.ROUNDING

    rules: ClassVar[Mapping[str, Rule]] = ROUNDING
