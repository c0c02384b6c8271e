"""Reports in files: what can be known to fail is found before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli.output import check_target
from graphopt.errors import OptionError, OutputError

if TYPE_CHECKING:
    from graphopt.reporting import Report

_SUFFIXES = (".json", ".html")


def check_reports(paths: Sequence[Path], *models: Path) -> None:
    """Raises OptionError or OutputError where a report cannot be written to one of `paths`, or would replace a model."""
    for path in paths:
        if path.suffix.lower() not in _SUFFIXES:
            raise OptionError(f"--report {path}: the name must end in {' or '.join(_SUFFIXES)}")
        check_target(path)
        if path.resolve() in [m.resolve() for m in models]:
            raise OutputError(f"{path}: is the model, not a place for a report")


def write_reports(report: Report, paths: Sequence[Path]) -> None:
    """Write the report to each path, as JSON or HTML by its ending."""
    from graphopt.formats import write_text
    from graphopt.reporting.html import render

    for path in paths:
        write_text(path, report.to_json() if path.suffix.lower() == ".json" else render(report))
