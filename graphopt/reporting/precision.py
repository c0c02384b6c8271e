
"""What a report tells of the precision of a result: in lines for the terminal, and as tables and pictures in HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_SHOWN = 200  # units in the table of HTML; JSON has all
_WORST = 3  # units that the terminal names
_GOOD, _BAD, _PLAIN, _LINE = "#116b3a", "#a8201a", "#2b6cb0", "#d8dde6"

Story = Mapping[str, Any]


def lines(story: Story | None) -> list[tuple[str, str]]:
    """(label, text) of what is to be said in short; nothing without lossy passes."""
    if not story or not story["units"]:
        return []
    units = story["units"]
    narrow = Counter(u["precision"] for u in units if u["precision"] != "float")
    whys = Counter(_short(u["why"]) for u in units if u["precision"] == "float")
    kinds = ", ".join(f"{n} {kind}" for kind, n in narrow.most_common())
    text = f"{sum(narrow.values())} of {len(units)} units narrow" + (f" ({kinds})" if kinds else "")
    if whys:
        text += "; in float: " + ", ".join(f"{n} {why}" for why, n in whys.most_common(3))
    rows = [("Precision", text)]
    figures = quality(story["quality"])
    rows.append(("Budget", f"{story['budget']} of the {story['judged_by']}" + (f": {figures}" if figures else "")))
    for i, unit in enumerate(worst(units)[:_WORST]):
        rows.append(("" if i else "Costliest", _unit(unit, story)))
    return rows


def worst(units: Sequence[Story]) -> list[Story]:
    """The units that were measured, those with the most noise first."""
    known = [u for u in units if u["alone"] is not None]
    return sorted(known, key=lambda u: -_noise(u))


def quality(figures: Story | None) -> str:
    """21.3 dB, cosine 0.9961, top-1 agreement 98.4 %."""
    if not figures or figures["fault"]:
        return ""
    parts = ["no difference" if figures["snr"] is None else f"{figures['snr']:.1f} dB", f"cosine {_cut(figures['cosine'])}"]
    if figures.get("top1") is not None:
        parts.append(f"top-1 agreement {_percent(figures['top1'])}")
    return ", ".join(parts)


def html(story: Story | None) -> str:
    """The sections of the page, without their headings; nothing without lossy passes."""
    if not story or not story["units"]:
        return ""
    return "".join((_table(story), _curve(story), _histograms(story)))


# --- words ------------------------------------------------------------------------------------------------------------


def _unit(unit: Story, story: Story) -> str:
    """node (Conv, float): 12.3 dB alone, saves 4.1 %."""
    return f"{unit['node']} ({unit['operator'] or unit['pass']}, {unit['precision']}): {_alone(unit)}, saves {_saves(unit, story)}"


def _alone(unit: Story) -> str:
    alone = unit["alone"]
    if alone is None:
        return "not measured"
    if alone["fault"]:
        return "breaks the outputs"
    shown = "no loss" if alone["snr"] is None else f"{alone['snr']:.1f} dB"
    return f"{shown} with its neighbours" if unit["grouped"] else f"{shown} alone"


def _saves(unit: Story, story: Story) -> str:
    if unit["saves"] is None:
        return "?"
    if story["saves_unit"] == "ms":
        return f"{unit['saves']:.3g} ms"
    whole = sum(u["saves"] or 0.0 for u in story["units"])
    return f"{_percent(unit['saves'] / whole if whole else 0.0)} of the multiplications"


def _short(why: str) -> str:
    return why.split(":")[0]


def _noise(unit: Story) -> float:
    noise = unit["alone"]["noise"]
    return float("inf") if noise is None else noise


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def _cut(cosine: float | None) -> str:
    """Four digits, cut rather than rounded."""
    return "?" if cosine is None else "1" if cosine >= 1 else f"{int(cosine * 1e4) / 1e4:.4f}"


# --- HTML -------------------------------------------------------------------------------------------------------------


def _table(story: Story) -> str:
    measured = any(u["float_ms"] is not None for u in story["units"])
    header = ["Unit", "Operator", "Precision", "Why", "Alone", "Saves"] + (["Float", "Narrow"] if measured else [])
    rows = []
    for unit in story["units"][:_SHOWN]:
        cells = [escape(unit["node"]), escape(unit["operator"] or ""), escape(unit["precision"]), escape(unit["why"])]
        cells += [escape(_alone(unit)), escape(_saves(unit, story))]
        if measured:
            cells += ["" if unit[k] is None else f"{unit[k]:.3g} ms" for k in ("float_ms", "narrow_ms")]
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    left = len(story["units"]) - len(rows)
    more = f'<p class="dim">and {left:,} further units, which the JSON report has</p>' if left > 0 else ""
    head = "".join(f"<th>{h}</th>" for h in header)
    told = "".join(f"<p>{escape(label)}: {escape(text)}</p>" for label, text in lines(story)[:2])
    return f"{told}<table><tr>{head}</tr>{''.join(rows)}</table>{more}"


def _curve(story: Story) -> str:
    """Every candidate that was measured: how much of the narrowing it keeps, and its quality, as SVG."""
    key, unit = ("metric", story["judged_by"]) if story["judged_by"] == "metric" else ("snr", "dB")
    points = [p for p in story["curve"] if p[key] is not None]
    if len(points) < 2:
        return ""
    low, high = min(p[key] for p in points), max(p[key] for p in points)
    span = (high - low) or 1.0
    width, height, left, bottom = 560, 240, 56, 34

    def x(part: float) -> float:
        return left + min(max(part, 0.0), 1.0) * (width - left - 14)

    def y(value: float) -> float:
        return 12 + (1 - (value - low) / span) * (height - bottom - 24)

    parts = [
        f'<h3>Quality against speed</h3><svg role="img" aria-label="quality against speed" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">',
        f'<line x1="{left}" x2="{width - 10}" y1="{height - bottom}" y2="{height - bottom}" stroke="{_LINE}"/>',
        f'<line x1="{left}" x2="{left}" y1="8" y2="{height - bottom}" stroke="{_LINE}"/>',
    ]
    for value in dict.fromkeys((low, high)):
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for part in (0.0, 0.5, 1.0):
        parts.append(f'<text x="{x(part):.1f}" y="{height - bottom + 15}" text-anchor="middle">{100 * part:.0f} %</text>')
    parts.append(f'<text x="{(width + left) / 2}" y="{height - 4}" text-anchor="middle">of what all narrowing would save</text>')
    parts.append(f'<text x="{left + 6}" y="18">{escape(unit)}</text>')
    for p in points:
        title = f"{p['back_in_float']} units back in float, {_percent(p['saved'])} kept: {quality(p)}"
        parts.append(
            f'<circle cx="{x(p["saved"]):.1f}" cy="{y(p[key]):.1f}" r="5" fill="{_GOOD if p["inside"] else _BAD}" fill-opacity="0.75">'
            f"<title>{escape(title)}</title></circle>"
        )
    return "".join(parts) + '</svg><p class="dim">green: within the budget; red: beyond it</p>'


def _histograms(story: Story) -> str:
    found = []
    for one in story["worst"]:
        pictures = [("weight", one["weight"])] if one["weight"] else []
        pictures += [("activation", a) for a in one["activations"]]
        if pictures:
            drawn = "".join(_histogram(kind, values) for kind, values in pictures)
            found.append(f"<p>{escape(one['node'])} ({escape(one['operator'] or '')})</p><div>{drawn}</div>")
    return f"<h3>The costliest units: their values before narrowing, counts on a square-root scale</h3>{''.join(found)}" if found else ""


def _histogram(kind: str, values: Story) -> str:
    """Bars of the square roots of counts, so that tails and outliers show."""
    counts = values["counts"]
    width, height = 240, 96
    top = max(max(counts, default=0), 1) ** 0.5
    bar = (width - 8) / max(len(counts), 1)
    name = f"{kind} {values['name']}" if values.get("name") else kind
    parts = [
        f'<svg role="img" aria-label="{escape(name)}" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(name)}</title>'
    ]
    for i, count in enumerate(counts):
        if count:
            tall = max(1.0, count**0.5 / top * (height - 34))
            place = f'x="{4 + i * bar:.1f}" y="{height - 18 - tall:.1f}" width="{bar * 0.9:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect {place} fill="{_PLAIN}"/>')
    shown = name if len(name) <= 34 else name[:33] + "…"
    parts.append(f'<text x="4" y="11">{escape(shown)}</text>')
    parts.append(f'<text x="4" y="{height - 4}">{values["low"]:.3g}</text>')
    parts.append(f'<text x="{width - 4}" y="{height - 4}" text-anchor="end">{values["high"]:.3g}</text></svg>')
    return "".join(parts)
