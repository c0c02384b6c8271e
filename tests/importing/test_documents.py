"""The page on the importer names the operators that it has, and none that it has not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

TEXT = (Path(__file__).parents[2] / "docs/torch_import.md").read_text(encoding="utf-8")


def test_the_operators_are_those_of_the_table() -> None:
    from graphopt.importing import table

    told = {
        ("" if domain == "ai.onnx" else domain, name)
        for domain, names in re.findall(r"^\* `([\w.]+)`: ((?:.|\n  )+)", TEXT.split("## Operators")[1], re.MULTILINE)
        for name in re.findall(r"\w+", names)
    }
    assert told == {(row.domain, row.name) for row in table.entries()}
