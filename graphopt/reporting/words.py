# ruff: noqa: RUF001, RUF002  (typography that a reader sees)
"""Figures of a report in words, shared by the terminal and the page of HTML."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from graphopt.reporting.report import PassRecord

_VERDICTS = {
    "identical": "every output is the same bit for bit",
    "equivalent": "outputs differ by rounding only",
    "within-budget": "outputs differ within the budget",
    "different": "outputs differ by more than is allowed",
    "unverified": "nothing was proved",
}


def size(bytes_: int | None) -> str:
    """Bytes in decimal units: 18.9 MB."""
    if bytes_ is None:
        return "?"
    amount = float(bytes_)
    for unit in ("B", "kB", "MB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.95 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"


def speeds(rows: Mapping[str, Mapping[str, Any]] | None) -> list[tuple[str, str]]:
    """(way of running, its time, and how that is beside the first's) of a table of speeds."""
    found = (rows or {}).items()
    return [(name, milliseconds(row.get("ms")) + (f", {speed(row, None)}" if row.get("ratio") else "")) for name, row in found]


def title(record: PassRecord, mixed: bool) -> str:
    """The name of a pass; with the kind of graph that it was run on where a run had both."""
    return f"{record.name} ({record.kind})" if mixed else record.name


def seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def milliseconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.2f} s"


def change(before: float | None, after: float | None) -> str:
    """ " (-8.0 %)"; nothing where there is no change to speak of."""
    if not before or after is None or before == after:
        return ""
    percent = 100 * (after - before) / before
    return f" ({percent:+.1f} %)".replace("-", "−") if abs(percent) >= 0.05 else ""


def counts(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, figures) of what changed in the model at large."""
    rows = []
    for key, label, shown in (("bytes", "Size", size), ("nodes", "Nodes", "{:,}".format), ("parameters", "Parameters", "{:,}".format)):
        old, new = before.get(key), after.get(key)
        if old is None and new is None:
            continue
        left, right = ("?" if v is None else shown(v) for v in (old, new))
        rows.append((label, f"{left} → {right}{change(old, new)}" if old != new else f"{left}, as before"))
    return rows


def operator_changes(before: Mapping[str, int], after: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """(operator, before, after) of the operators whose number changed, the largest change first."""
    rows = [(op, before.get(op, 0), after.get(op, 0)) for op in before.keys() | after.keys()]
    return sorted((r for r in rows if r[1] != r[2]), key=lambda r: (-abs(r[1] - r[2]), r[0]))


def speed(figures: Mapping[str, Any] | None, threads: int | None) -> str:
    """1.23x faster (1.21–1.25, 40 pairs, 2 threads); "no measurable change" where the interval holds 1."""
    if not figures:
        return "not measured"
    ratio, low, high = (figures.get(k) for k in ("ratio", "low", "high"))
    if not ratio:
        return "not measured"
    details = f"{_count(figures['pairs'], 'pair')}" + (f", {_count(threads, 'thread')}" if threads else "")
    # Without an interval there is no telling. The stage that measured may judge with a margin of its own.
    known = low is not None and high is not None
    if figures.get("slower", known and high < 1):
        return f"{1 / ratio:.2f}x slower ({_range(1 / high, 1 / low if low else None)}, {details})"
    if figures.get("faster", known and low > 1):
        return f"{ratio:.2f}x faster ({_range(low, high)}, {details})"
    return f"no measurable change ({ratio:.2f}x, {_range(low, high)}, {details})"


def measured_on(figures: Mapping[str, Any], threads: int | None) -> list[str]:
    """The shapes that the speed was measured on, and the speed on smaller ones where that was measured, too."""
    lines = [f"on {shapes(figures['shapes'])}"] if figures.get("shapes") else []
    if smaller := figures.get("smaller"):
        lines.append(f"on {shapes(smaller['shapes'])}: {speed(smaller, threads)}")
    return lines


def shapes(of: Mapping[str, Any], most: int = 3) -> str:
    """ids [1, 128], mask [1, 128]; inputs beyond `most` are only counted."""
    shown = [f"{name} {list(shape)}" for name, shape in list(of.items())[:most]]
    return ", ".join(shown) + (f" and {_count(len(of) - most, 'other input')}" if len(of) > most else "")


def session(figures: Mapping[str, Any]) -> str:
    """1.08x faster again (1.06–1.10) with what is set apart from a plain session, and where that is written."""
    settings = figures["settings"]
    parts = [f"{', '.join(settings['disabled_optimizers'])} off"] if settings["disabled_optimizers"] else []
    if settings["graph_optimization_level"] != "all":
        parts.append(f"optimization level {settings['graph_optimization_level']}")
    parts.append(_count(settings["intra_op_num_threads"], "thread") if settings["intra_op_num_threads"] else "all threads")
    parts += [f"{key} = {value}" for key, value in settings["config"].items()]
    ratio = f"{figures['ratio']:.2f}x faster still ({_range(figures['low'], figures['high'])}, {_count(figures['pairs'], 'pair')})"
    return f"{ratio} with the settings in {figures['file']}: {'; '.join(parts)}"


def alternative(figures: Mapping[str, Any]) -> str:
    """What another preset would gain over the result, or that it would not."""
    name, ratio = figures["preset"], figures["ratio"]
    if ratio is None:
        return f"preset {name}: {figures['verdict']}"
    if not figures["pairs"]:
        return f"preset {name}: no change, the runtime ends with the same graph"
    spread = f"({_range(figures['low'], figures['high'])}, {_count(figures['pairs'], 'pair')})"
    if figures.get("faster"):
        return f"preset {name}: {ratio:.2f}x faster than this result {spread}"
    if figures.get("slower"):
        slower = _range(1 / figures["high"], 1 / figures["low"] if figures["low"] else None)
        return f"preset {name}: {1 / ratio:.2f}x slower than this result ({slower}, {_count(figures['pairs'], 'pair')})"
    return f"preset {name}: no measurable change ({ratio:.2f}x, {_range(figures['low'], figures['high'])})"


def latency(figures: Mapping[str, Any]) -> str:
    """12.3 ms → 10.0 ms a run, and the time to make a session where that was taken."""
    text = f"{milliseconds(figures.get('before_ms'))} → {milliseconds(figures.get('after_ms'))} a run"
    if figures.get("session_before_ms") is not None and figures.get("session_after_ms") is not None:
        text += f"; {milliseconds(figures['session_before_ms'])} → {milliseconds(figures.get('session_after_ms'))} to make a session"
    return text


def verdict(verification: Mapping[str, Any] | None) -> str:
    """equivalent: outputs differ by rounding only; 4 samples, 2 sizes; worst error 1.2e-06 (...)."""
    if not verification:
        return "not verified (switched off)"
    word = verification.get("verdict")
    if not word:
        return "not verified"
    parts = [f"{word}: {_VERDICTS[word]}" if word in _VERDICTS else str(word)]
    numbers = {unit: _number(verification.get(f"{unit}s")) for unit in ("sample", "size")}
    if run := [_count(n, unit) for unit, n in numbers.items() if n]:
        parts.append(", ".join(run))
    if verification.get("exercised") is not None:
        # Cut, not rounded: 99.9 % is not all of it.
        parts.append(f"{math.floor(100 * verification['exercised'])} % of the graph exercised")
    return "; ".join(parts)


def worst_output(verification: Mapping[str, Any] | None) -> str:
    """The largest error over the outputs; nothing where all are the same or none was compared."""
    outputs = [o for o in (verification or {}).get("outputs") or [] if o.get("max_abs")]
    if not outputs:
        return ""

    def rank(output: Mapping[str, Any]) -> tuple[float, float]:
        errors = (output.get("max_rel") or 0.0, output["max_abs"])
        return tuple(math.inf if math.isnan(e) else e for e in errors)

    worst = max(outputs, key=rank)
    text = f"{worst['max_abs']:.2g}"
    if worst.get("max_rel") is not None:
        text += f", relative {worst['max_rel']:.2g}"
    if worst.get("cosine") is not None:
        text += f", cosine {cosine(worst['cosine'])}"
    # Identical is said of the graphs; what the runtime's own optimizations make of them may still round apart.
    where = "; as the runtime optimizes the two" if (verification or {}).get("verdict") == "identical" else ""
    return f"{text} (output '{worst['name']}'{where})"


def failure(output: Mapping[str, Any]) -> str:
    """What is wrong with an output that is not ok: the reason given, or the size of its error where it has one."""
    if output.get("reason"):
        return f"output '{output['name']}': {output['reason']}"
    return f"output '{output['name']}' differs" + ("" if output.get("max_abs") is None else f" by {output['max_abs']:.3g}")


def cosine(value: float) -> str:
    """Six digits, cut rather than rounded: 0.9999997 must not read as 1."""
    return "1" if value >= 1 else f"{math.trunc(value * 1e6) / 1e6:.6f}" if math.isfinite(value) else str(value)


def quality(figures: Mapping[str, Any]) -> str:
    """accuracy 0.9806 → 0.9806 (360 samples); other keys as they come."""
    rest = dict(figures)
    name = str(rest.pop("metric", rest.pop("name", "quality")))
    text = name
    if "before" in rest or "after" in rest:
        text += f" {_figure(rest.pop('before', None))} → {_figure(rest.pop('after', None))}"
    if "samples" in rest:
        rest["samples"] = _number(rest["samples"])
    rest = {key: value for key, value in rest.items() if value != ""}
    details = [_count(v, "sample") if k == "samples" else f"{k} {_figure(v)}" for k, v in rest.items() if v is not None]
    return text + (f" ({', '.join(details)})" if details else "")


def refusals(record: PassRecord, most: int = 6) -> list[str]:
    """12 × the reason (e.g. node 'c1'), the most frequent first; reasons beyond `most` are only counted."""
    reasons = Counter(r.reason for r in record.refused)
    first: dict[str, str] = {}
    for r in record.refused:
        first.setdefault(r.reason, r.node)
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    lines = []
    for reason, n in ordered[:most]:
        node = f"{'e.g. ' if n > 1 else ''}node '{first[reason]}'" if first[reason] else ""
        lines.append(f"{n} × {reason}" + (f" ({node})" if node else ""))
    if left := ordered[most:]:
        lines.append(f"{sum(n for _, n in left)} × for {_count(len(left), 'other reason')} (all of them are in the JSON report)")
    return lines


def result(record: PassRecord) -> str:
    """What became of the pass: the nodes before and after, or that it was undone."""
    if record.status in ("rolled-back", "failed"):
        return record.status.replace("-", " ")
    if record.nodes_before == record.nodes_after:
        return f"{record.nodes_after:,}"
    return f"{record.nodes_before:,} → {record.nodes_after:,}"


def _count(n: int | float, unit: str) -> str:
    return f"{n:,} {unit}" + ("" if n == 1 else "s")


def _range(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{low:.2f}–{high:.2f}"


def _number(value: Any) -> int:
    """How many: the value itself, or the length of a list of them."""
    return len(value) if isinstance(value, (list, tuple, dict)) else int(value or 0)


def _figure(value: Any) -> str:
    return "?" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
