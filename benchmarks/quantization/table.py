"""What was measured, as Markdown: speed and loss of every tool, sizes, kernels, geometric means, and where graphopt falls short."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.quantization.quality import BUDGET
from benchmarks.quantization.tools import TOOLS

_SLOWER = 0.98
_WIDE = 0.2

Row = Mapping[str, Any]
#: The preset that is held to what is wanted: integers, placed and held to a budget.
MAIN = "graphopt_int8"


def report(rows: Sequence[Row], threads: Sequence[int], machine: Mapping[str, Any]) -> str:
    """All tables."""
    parts = [f"Measured on: {', '.join(f'{key} {value}' for key, value in machine.items() if value not in (None, ''))}"]
    parts += [speeds(rows, threads), summary(rows, threads), sizes(rows), kernels(rows), remarks(rows)]
    short = shortfalls(rows, threads)
    parts.append("Where graphopt falls short:\n" + "\n".join(f"* {line}" for line in short) if short else "graphopt falls short nowhere.")
    return "\n\n".join(part for part in parts if part)


def _names(rows: Sequence[Row]) -> list[str]:
    return [name for name in TOOLS if any(name in row["tools"] for row in rows)]


def speeds(rows: Sequence[Row], threads: Sequence[int]) -> str:
    """Models by tools: the float model's time over the result's for each number of threads, and the loss in percent."""
    names = _names(rows)
    lines = [f"| model | score of float | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        score = row["float"]["score"]
        cells = [_cell(name, row["tools"].get(name), threads) for name in names]
        lines.append(f"| {row['model']} | {'' if score is None else f'{score:.3f}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name: str, found: Mapping[str, Any] | None, threads: Sequence[int]) -> str:
    if found is None:
        return ""
    if found["status"] != "ok":
        return f"**{found['status']}**"
    quality = found["quality"]
    if quality is None:
        return "not scored"
    if "fault" in quality:
        return "**does not run**"
    shown = " / ".join(_ratio(found["speed"][t]) for t in threads if t in found["speed"]) or "-"
    if TOOLS[name].lossless:
        return shown
    text = f"{100 * quality['loss']:.1f} %, {quality['cosine']:.3f}"
    return f"{shown}; {text}" if within(found) else f"{shown}; **{text}**"


def _ratio(speed: Mapping[str, Any]) -> str:
    """A ratio, "~" before one whose interval is wider than a fifth."""
    return f"{'~' if speed['high'] - speed['low'] > _WIDE * speed['ratio'] else ''}{speed['ratio']:.2f}"


def within(found: Mapping[str, Any] | None, budget: float = BUDGET) -> bool:
    """Whether a result is there, runs, and loses no more than the budget."""
    quality = None if found is None or found["status"] != "ok" else found["quality"]
    return quality is not None and "fault" not in quality and quality["loss"] <= budget


def usable(found: Mapping[str, Any] | None, threads: int) -> float | None:
    """The speed that a user has of a tool on a model: 1 where its result is not there, or loses too much; None: not timed."""
    if not within(found):
        return 1.0
    assert found is not None
    speed = found["speed"].get(threads)
    return None if speed is None else speed["ratio"]


def best_peer(row: Row, threads: int) -> tuple[str, float]:
    """The other tool that is fastest within the budget, by hindsight; the float model itself where none gains."""
    found = {name: usable(tool, threads) for name, tool in row["tools"].items() if TOOLS[name].preset is None}
    speeds = {name: ratio for name, ratio in found.items() if ratio is not None and ratio > 1}
    return max(speeds.items(), key=lambda item: item[1], default=("float", 1.0))


def best_of_ours(row: Row, threads: int) -> float | None:
    """The fastest of graphopt's results within the budget."""
    found = [usable(tool, threads) for name, tool in row["tools"].items() if TOOLS[name].preset is not None]
    return max((ratio for ratio in found if ratio is not None), default=None)


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def summary(rows: Sequence[Row], threads: Sequence[int]) -> str:
    """By tool: results, those beyond the budget, those slower than float, and geometric means over the CNNs and encoders."""
    heads = [row for row in rows if row["headline"]]
    lines = [
        "Collapsed: the loss is beyond the budget. The geometric means are over "
        + f"{', '.join(row['model'] for row in heads)}; in that of usable results a result that is missing or collapsed counts 1.",
        "",
        "| tool | results | crash or timeout | collapsed | slower than float | "
        + " | ".join(f"geometric mean, {t} thread{'s' * (t > 1)}: all / usable" for t in threads) + " |",
        "|---" * (5 + len(threads)) + "|",
    ]  # fmt: skip
    for name in _names(rows):
        mine = [row["tools"][name] for row in rows if name in row["tools"]]
        made = [f for f in mine if f["quality"] is not None and "fault" not in f["quality"]]
        slower = sum(any(s["high"] < _SLOWER for s in f["speed"].values()) for f in made)
        over = sum(not within(f) for f in made)
        means = []
        for t in threads:
            found = [row["tools"].get(name) for row in heads]
            every = [f["speed"][t]["ratio"] for f in found if f is not None and t in f["speed"]]
            kept = [u for u in (usable(f, t) for f in found) if u is not None]
            means.append(f"{geometric_mean(every):.2f} / {geometric_mean(kept):.2f}")
        lines.append(f"| {name} | {len(made)} | {len(mine) - len(made)} | {over} | {slower} | {' | '.join(means)} |")
    for title, pick in (("best other tool, by hindsight", lambda row, t: best_peer(row, t)[1]), ("best of graphopt's", best_of_ours)):
        means = [f"{geometric_mean(v for v in (pick(row, t) for row in heads) if v is not None):.2f}" for t in threads]
        lines.append(f"| {title} |  |  |  |  | {' | '.join(means)} |")
    return "\n".join(lines)


def sizes(rows: Sequence[Row]) -> str:
    """Models by tools: bytes of the result over those of the model."""
    names = _names(rows)
    lines = [f"| size of | bytes | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        whole = row["float"]["bytes"]
        found = [(row["tools"].get(name) or {}).get("bytes") for name in names]
        cells = [f"{bytes_ / whole:.2f}" if bytes_ else "" for bytes_ in found]
        lines.append(f"| {row['model']} | {whole:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kernels(rows: Sequence[Row], name: str = MAIN) -> str:
    """What the runtime runs graphopt's results on: its integer kernels, what stays in float, conversions between the two."""
    lines = [f"| {name} on | integer kernels | in float | conversions |", "|---|---|---|---|"]
    for row in rows:
        quality = row["tools"].get(name, {}).get("quality")
        if quality is None or "integer" not in quality:
            continue
        both = [", ".join(f"{count} {op}" for op, count in quality[key].items()) for key in ("integer", "float")]
        lines.append(f"| {row['model']} | {both[0]} | {both[1]} | {quality['conversions']} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def remarks(rows: Sequence[Row]) -> str:
    """What tools said, and what scores are."""
    lines = [f"* {row['model']}: the score is the share of {row['what']}" for row in rows if row["what"]]
    for row in rows:
        for name, found in row["tools"].items():
            text = found["error"] or found["notes"] or (found["quality"] or {}).get("fault", "")
            if text:
                lines.append(f"* {row['model']}, {name}: {text}")
    return "\n".join(lines)


def shortfalls(rows: Sequence[Row], threads: Sequence[int]) -> list[str]:
    """Where a result of graphopt is not there, loses more than the budget, is slower than float, or than the best of the others."""
    said = []
    for row in rows:
        for name, found in row["tools"].items():
            if TOOLS[name].preset is None:
                continue
            where, quality = f"{row['model']}, {name}: ", found["quality"]
            if quality is None or "fault" in quality:
                said.append(where + (found["error"] or (quality or {}).get("fault", "") or found["status"]))
                continue
            if not within(found) and not TOOLS[name].lossless:
                silent = "" if found["notes"] else ", silently"
                said.append(f"{where}loses {100 * quality['loss']:.1f} % (cosine {quality['cosine']:.3f}){silent}")
            for t, speed in found["speed"].items():
                peer, ratio = best_peer(row, t)
                if speed["high"] < _SLOWER:
                    said.append(f"{where}{t} threads: {speed['ratio']:.2f} ({speed['low']:.2f} to {speed['high']:.2f}) of float")
                elif name == MAIN and within(found) and speed["high"] < _SLOWER * ratio:
                    said.append(f"{where}{t} threads: {speed['ratio']:.2f} (to {speed['high']:.2f}); {peer} has {ratio:.2f}")
    return said
