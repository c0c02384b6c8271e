# ruff: noqa: RUF001  (typography that a reader sees)
"""The report as one page of HTML: no script, nothing loaded from elsewhere, every text from outside escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from graphopt.reporting import placement, precision, words
from graphopt.reporting.report import Report, plain

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; background: #fff; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #d8dde6 }
table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 600; color: #5b6678 }
th, td { padding: .25rem .8rem .25rem 0; vertical-align: top; border-bottom: 1px solid #eef1f5; overflow-wrap: anywhere }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums } .dim { color: #5b6678 }
.good { color: #116b3a } .bad { color: #a8201a } .warn { color: #8a5a00 }
svg { max-width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #1c2330 }
ul { margin: .2rem 0; padding-left: 1.2rem }
"""
_BEFORE, _AFTER = "#9aa7bb", "#2b6cb0"
_STATUS_CLASS = {"kept": "", "no-change": "dim", "rolled-back": "warn", "failed": "bad"}
_VERDICT_CLASS = {"identical": "good", "equivalent": "good", "within-budget": "warn", "different": "bad"}
_MOST_OPERATORS = 24


def render(report: Report) -> str:
    """The whole page as text."""
    title = f"graphopt: {report.model.get('path', '')}"
    parts = [
        f"<h1>{escape(str(report.model.get('path', '')))}</h1>",
        f'<p class="dim">{escape(_target(report))}</p>',
        _summary(report),
        _section("Passes", _passes(report)),
        _section("Placement", _placement(report)),
        _section("Refused", _refusals(report)),
        _section("Outputs", _outputs(report)),
        _section("Precision", precision.html(plain(report.extra.get("precision")))),
        _section("Operators", operators_chart(report.before.get("operators", {}), report.after.get("operators", {}))),
        _section("Inputs and outputs", _interface(report)),
        _section("Notes", _list([*report.notes, *((report.verification or {}).get("notes") or [])])),
        _section("Warnings", _list(report.warnings)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(p for p in parts if p)
        + "\n</body>\n</html>\n"
    )


def _target(report: Report) -> str:
    t = report.target
    threads = t.get("threads")
    parts = [t.get("provider"), t.get("device"), f"{threads} thread{'' if threads == 1 else 's'}" if threads else None, t.get("isa")]
    opset = report.model.get("opset")
    return ", ".join(str(p) for p in parts if p) + (f"; opset {opset}" if opset else "")


def _summary(report: Report) -> str:
    verdict = (report.verification or {}).get("verdict", "")
    speed = words.speed(report.speed, report.target.get("threads"))
    rows = [("Verified", _span(words.verdict(report.verification), _VERDICT_CLASS.get(verdict, "warn")))]
    if worst := words.worst_output(report.verification):
        rows.append(("Worst error", escape(worst)))
    rows.append(("Speed", _span(speed, "good" if "faster" in speed else "bad" if "slower" in speed else "") + speed_chart(report.speed)))
    if report.speed and report.speed.get("before_ms") is not None:
        rows.append(("Latency", escape(words.latency(report.speed))))
    rows += [("Measured", escape(line)) for line in words.measured_on(report.speed or {}, report.target.get("threads"))]
    rows += [(escape(name), escape(text)) for name, text in words.speeds(report.extra.get("speeds"))]
    if session := report.extra.get("session"):
        rows.append(("Session", escape(words.session(session))))
    rows += [("Alternative", escape(words.alternative(other))) for other in report.extra.get("alternatives") or []]
    rows += [(label, escape(text)) for label, text in words.counts(report.before, report.after)]
    if report.quality:
        rows.append(("Quality", escape(words.quality(report.quality))))
    if taken := {k: v for k, v in report.seconds.items() if v}:
        rows.append(("Time", escape(", ".join(f"{k} {words.seconds(v)}" for k, v in taken.items()))))
    rows.append(("Written to", escape(report.output or "nothing was written")))
    return _table(None, rows)


def _passes(report: Report) -> str:
    rows = []
    mixed = len({p.kind for p in report.passes}) > 1
    for p in report.passes:
        shown = "no change" if p.status == "no-change" else words.result(p)
        name = _span(words.title(p, mixed), _STATUS_CLASS.get(p.status, ""))
        name += (f'<br><span class="dim">{escape(p.note)}</span>' if p.note else "")
        rows.append((name, escape(p.effect), f"{p.applied:,}", f"{len(p.refused):,}", escape(shown), escape(words.seconds(p.seconds))))
    return _table(("Pass", "Effect", "Applied", "Refused", "Nodes", "Time"), rows, numbers={2, 3, 4, 5}) if rows else ""


def _placement(report: Report) -> str:
    figures = report.extra.get("placement")
    if not figures:
        return ""
    units = [tuple(escape(cell) for cell in row) for row in placement.rows(figures)]
    return _list(placement.summary(figures)) + (_table(placement.HEADER, units, numbers={3, 4, 5}) if units else "")


def _refusals(report: Report) -> str:
    rows = [(escape(p.name), _list(words.refusals(p, most=50))) for p in report.passes if p.refused]
    return _table(("Pass", "Matches that a guard turned down"), rows) if rows else ""


def _outputs(report: Report) -> str:
    outputs = plain((report.verification or {}).get("outputs") or [])
    rows = []
    for o in outputs:
        ok = o.get("ok")
        figures = ("–" if o.get(k) is None else f"{o[k]:.3g}" for k in ("max_abs", "max_rel"))
        cosine = "–" if o.get("cosine") is None else words.cosine(o["cosine"])
        state = _span(words.failure(o), "bad") if ok is False else _span("ok", "good") if ok else "–"
        rows.append((escape(str(o.get("name"))), *figures, cosine, state))
    return _table(("Output", "Largest error", "Relative", "Cosine", ""), rows, numbers={1, 2, 3}) if rows else ""


def _interface(report: Report) -> str:
    rows = []
    for kind in ("inputs", "outputs"):
        for v in report.model.get(kind) or []:
            if not isinstance(v, dict):
                v = {"name": v}
            shape = v.get("shape")
            dims = "" if shape is None else "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
            rows.append((kind[:-1], escape(str(v.get("name"))), escape(f"{v.get('type') or ''} {dims}".strip())))
    return _table(("", "Name", "Type"), rows) if rows else ""


def operators_chart(before: dict[str, int], after: dict[str, int]) -> str:
    """Bars of how often each operator occurs before and after, the most frequent first, as SVG."""
    names = sorted(before.keys() | after.keys(), key=lambda op: (-max(before.get(op, 0), after.get(op, 0)), op))
    if not names:
        return ""
    shown = names[:_MOST_OPERATORS]
    left, width, row = 220, 380, 30
    top = max(max(before.get(op, 0), after.get(op, 0)) for op in shown)
    parts = [
        f'<svg role="img" aria-label="operators before and after" width="680" height="{row * len(shown) + 26}" '
        f'viewBox="0 0 680 {row * len(shown) + 26}" xmlns="http://www.w3.org/2000/svg">',
        f'<rect x="{left}" y="4" width="10" height="10" fill="{_BEFORE}"/><text x="{left + 15}" y="13">before</text>',
        f'<rect x="{left + 75}" y="4" width="10" height="10" fill="{_AFTER}"/><text x="{left + 90}" y="13">after</text>',
    ]
    for i, op in enumerate(shown):
        y = 26 + i * row
        label = op if len(op) <= 32 else op[:31] + "…"
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>')
        for offset, count, colour in ((0, before.get(op, 0), _BEFORE), (11, after.get(op, 0), _AFTER)):
            length = count / top * width
            parts.append(f'<rect x="{left}" y="{y + offset}" width="{length:.1f}" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{left + length + 5:.1f}" y="{y + offset + 9}" font-size="10">{count:,}</text>')
    parts.append("</svg>")
    if left_over := len(names) - len(shown):
        parts.append(f'<p class="dim">and {left_over} rarer operators</p>')
    return "".join(parts)


def speed_chart(figures: dict[str, Any] | None) -> str:
    """The ratio and its interval on an axis that holds 1, as SVG; nothing without an interval."""
    figures = plain(figures or {})
    ratio, low, high = (figures.get(k) for k in ("ratio", "low", "high"))
    if ratio is None or low is None or high is None:
        return ""
    start, end = min(low, 1.0), max(high, 1.0)
    margin = max(0.1 * (end - start), 0.02)
    start, end = max(0.0, start - margin), end + margin
    width = 420

    def x(value: float) -> str:
        return f"{10 + (value - start) / (end - start) * (width - 20):.1f}"

    colour = "#116b3a" if low > 1 else "#a8201a" if high < 1 else "#5b6678"
    return (
        f'<br><svg role="img" aria-label="speed ratio and its interval" width="{width}" height="44" viewBox="0 0 {width} 44" '
        'xmlns="http://www.w3.org/2000/svg">'
        f'<line x1="10" x2="{width - 10}" y1="16" y2="16" stroke="#d8dde6"/>'
        f'<line x1="{x(1)}" x2="{x(1)}" y1="4" y2="28" stroke="#5b6678" stroke-dasharray="3 2"/>'
        f'<line x1="{x(low)}" x2="{x(high)}" y1="16" y2="16" stroke="{colour}" stroke-width="5"/>'
        f'<circle cx="{x(ratio)}" cy="16" r="5" fill="{colour}"/>'
        f'<text x="{x(1)}" y="41" text-anchor="middle">1x</text></svg>'
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def _span(text: str, class_: str) -> str:
    return f'<span class="{class_}">{escape(text)}</span>' if class_ else escape(text)


def _list(lines: Iterable[Any]) -> str:
    items = "".join(f"<li>{escape(str(line))}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _table(header: tuple[str, ...] | None, rows: Iterable[tuple[str, ...]], numbers: set[int] = frozenset()) -> str:
    """A table of cells that are HTML already. numbers: columns set to the right."""

    def cells(tag: str, row: tuple[str, ...]) -> str:
        kinds = [' class="n"' if i in numbers else "" for i in range(len(row))]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    head = f"<tr>{cells('th', header)}</tr>" if header else ""
    body = "".join(f"<tr>{cells('td', r)}</tr>" for r in rows)
    return f"<table>{head}{body}</table>"
