# ruff: noqa: RUF001  (typography that a reader sees)
"""Which units run on integers and which in float, in words and as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphopt.reporting import words

HEADER = ("Unit", "Operator", "Runs", "Float", "Narrow", "Saves", "Why")
_NAMES = {"float": "all in float", "all": "all narrowed", "placed": "as placed"}


def summary(figures: Mapping[str, Any]) -> list[str]:
    """What was kept, and predicted beside measured milliseconds."""
    lines = [figures["text"]]
    for label in ("predicted", "measured"):
        if found := figures[f"{label}_ms"]:
            lines.append(f"{label}: " + ", ".join(f"{words.milliseconds(found[k])} {text}" for k, text in _NAMES.items() if k in found))
    return lines


def rows(figures: Mapping[str, Any], most: int | None = None) -> list[tuple[str, ...]]:
    """A row a unit, those in float first, then those that save most; `most`: no more than that."""
    runs_narrow = {"all": lambda u: True, "float": lambda u: False, "placed": lambda u: u["precision"] == "narrow"}[figures["kept"]]
    units = sorted(figures["units"], key=lambda u: (runs_narrow(u), -abs(u["saves_ms"]), u["application"]))
    return [
        (
            u["node"], u["operator"], "narrow" if runs_narrow(u) else "float", words.milliseconds(u["float_ms"]),
            words.milliseconds(u["narrow_ms"]), words.milliseconds(u["saves_ms"]).replace("-", "−"), u["why"],
        )
        for u in units[:most]
    ]  # fmt: skip
