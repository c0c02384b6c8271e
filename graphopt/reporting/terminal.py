# ruff: noqa: RUF001  (typography that a reader sees)
"""The report for a person at a terminal, or for the file that the output is piped to."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from graphopt.reporting import placement, precision, words
from graphopt.reporting.report import Report, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LABEL = 12  # columns of the labels on the left
_SMALLEST = 60
_MOST_UNITS = 4  # that a placement left in float, by name
# For terminals that cannot show them, such as those of the C locale.
_ASCII = str.maketrans({"→": "->", "×": "x", "–": "-", "−": "-", "─": "-", "…": "...", "‘": "'", "’": "'"})


def print_report(report: Report, file: TextIO | None = None, width: int | None = None) -> None:
    """Writes the report to `file` (default: standard output).

    Colours go to a terminal only, and NO_COLOR switches them off. width: columns; default the terminal's, 80 elsewhere.
    """
    file = file or sys.stdout
    terminal = file.isatty()
    text = render(report, width=width or _width(file), color=terminal and not os.environ.get("NO_COLOR"))
    encoding = getattr(file, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    file.write(text)
    file.flush()


def render(report: Report, width: int = 80, color: bool = False) -> str:
    """The report as text of at most `width` columns, but for paths and names longer than that, which stay whole."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out, width=max(width, _SMALLEST), force_terminal=color, no_color=not color, highlight=False, markup=False,
        emoji=False, legacy_windows=False, color_system="standard" if color else None,
    )  # fmt: skip
    _header(console, report)
    _passes(console, report)
    _refusals(console, report)
    _outcome(console, report)
    # The table pads its lines to their full width, which is litter in a file.
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _width(file: TextIO) -> int:
    try:
        return os.get_terminal_size(file.fileno()).columns if file.isatty() else 80
    except (OSError, ValueError):
        return 80


def _header(console: Console, report: Report) -> None:
    target = report.target
    opset = report.model.get("opset")
    _line(console, "Model", str(report.model.get("path", "?")) + (f" (opset {opset})" if opset else ""), "bold")
    threads = target.get("threads")
    parts = [
        target.get("provider"),
        target.get("device"),
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else None,
        target.get("isa"),
    ]
    _line(console, "Target", ", ".join(str(p) for p in parts if p))


def _passes(console: Console, report: Report) -> None:
    if not report.passes:
        return
    idle = [p for p in report.passes if p.status == "no-change"]
    active = [p for p in report.passes if p.status != "no-change"]
    mixed = len({p.kind for p in report.passes}) > 1
    console.print()
    if active:
        table = _table(console.width)
        for p in active:
            style = {"rolled-back": "yellow", "failed": "red"}.get(p.status, "")
            refused = f"{len(p.refused):,}" if p.refused else ""
            name = words.title(p, mixed)
            table.add_row(name, p.effect, f"{p.applied:,}", refused, words.result(p), words.seconds(p.seconds), style=style)
        console.print(table)
    if idle:
        _line(console, "No change", ", ".join(dict.fromkeys(p.name for p in idle)), "dim")
    for p in report.passes:
        if p.note:
            _line(console, "", f"{p.name}: {p.note}", {"rolled-back": "yellow", "failed": "red"}.get(p.status, "dim"))


def _table(width: int) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("Pass", overflow="fold", max_width=max(20, width - 46))
    table.add_column("Effect", no_wrap=True)
    for name in ("Applied", "Refused", "Nodes", "Time"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _refusals(console: Console, report: Report) -> None:
    refusing = [p for p in report.passes if p.refused]
    if not refusing:
        return
    console.print()
    _line(console, "Refused", "matches that a guard turned down")
    for p in refusing:
        _line(console, "", p.name, "bold")
        for line in words.refusals(p):
            _line(console, "", line, indent=2)


def _outcome(console: Console, report: Report) -> None:
    console.print()
    verification = report.verification or {}
    style = {"identical": "green", "equivalent": "green", "within-budget": "yellow", "different": "bold red"}
    _line(console, "Verified", words.verdict(report.verification), style.get(verification.get("verdict", ""), "yellow"))
    if worst := words.worst_output(report.verification):
        _line(console, "Worst error", worst)
    for output in verification.get("outputs") or []:
        if output.get("ok") is False:
            _line(console, "", words.failure(output), "red")
    for note in verification.get("notes") or []:
        _line(console, "", str(note))
    speed = report.speed or {}
    text = words.speed(report.speed, report.target.get("threads"))
    _line(console, "Speed", text, "green" if "faster" in text else "red" if "slower" in text else "")
    if speed.get("before_ms") is not None:
        _line(console, "", words.latency(speed))
    for line in words.measured_on(speed, report.target.get("threads")):
        _line(console, "", line)
    for i, (name, text) in enumerate(words.speeds(report.extra.get("speeds"))):
        _line(console, "" if i else "Speeds", f"{name} {text}")
    if placed := report.extra.get("placement"):
        _placement(console, placed)
    if session := report.extra.get("session"):
        _line(console, "Session", words.session(session), "green")
    for i, other in enumerate(report.extra.get("alternatives") or []):
        _line(console, "" if i else "Alternative", words.alternative(other))
    for label, figures in words.counts(report.before, report.after):
        _line(console, label, figures)
    if report.quality:
        _line(console, "Quality", words.quality(report.quality))
    for label, text in precision.lines(plain(report.extra.get("precision"))):
        _line(console, label, text)
    taken = {k: v for k, v in report.seconds.items() if v}
    if taken:
        _line(console, "Time", ", ".join(f"{k} {words.seconds(v)}" for k, v in taken.items()))
    _line(console, "Written to", report.output or "nothing was written", "bold" if report.output else "yellow")
    for note in report.notes:
        _line(console, "Note", note)
    for warning in report.warnings:
        _line(console, "Warning", warning, "yellow")


def _placement(console: Console, figures: Mapping[str, Any]) -> None:
    """What runs narrowed and what in float, with the units that measuring left in float."""
    for i, text in enumerate(placement.summary(figures)):
        _line(console, "" if i else "Placement", text)
    in_float = [row for row in placement.rows(figures) if row[2] == "float"]
    for name, operator, _, float_ms, narrow_ms, _, why in in_float[:_MOST_UNITS]:
        _line(console, "", f"float: {name} ({operator}, {float_ms}, {narrow_ms} narrowed): {why}", "dim", 2)
    if (left := len(in_float) - _MOST_UNITS) > 0:
        _line(console, "", f"and {left:,} more (all units are in the JSON and the HTML report)", "dim", 2)


def _line(console: Console, label: str, text: str, style: str = "", indent: int = 0) -> None:
    """A label and its text, wrapped between words under itself; a word longer than the line stays whole."""
    import textwrap

    from rich.text import Text

    start = " " * (_LABEL + indent)
    # Control characters in names would move the cursor or worse.
    clean = "".join(c if c.isprintable() else "?" for c in text)
    lines = textwrap.wrap(clean, console.width - len(start), break_long_words=False, break_on_hyphens=False, replace_whitespace=False) or [
        ""
    ]
    for i, line in enumerate(lines):
        made = Text(label.ljust(_LABEL) if i == 0 else " " * _LABEL, style="" if i else "dim")
        made.append(" " * indent + line, style=style)
        console.print(made, soft_wrap=True)
