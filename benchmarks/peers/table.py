"""What was measured, as Markdown, and where graphopt falls short of the best of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers.measure import RIGHT
from benchmarks.peers.tools import TOOLS

_GROWTH = 1.02
_SLOWER = 0.98
_WIDE = 0.2


def table(rows: Sequence[dict[str, Any]], threads: Sequence[int]) -> str:
    """Models by tools: nodes, and the speed beside the original (above 1 is faster) for each number of threads."""
    names = [name for name in TOOLS if any(name in row["tools"] for row in rows)]
    lines = [f"| model | nodes | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        cells = [_cell(row["tools"].get(name), threads) for name in names]
        lines.append(f"| {row['model']} | {row['original']['nodes']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None, threads: Sequence[int]) -> str:
    if found is None:
        return ""
    if found["status"] != "ok":
        return found["status"]
    if found["verdict"] not in RIGHT:
        return f"{found['nodes']}, {found['verdict']}"
    speeds = [found.get("speed", {}).get(str(t)) for t in threads]
    shown = " / ".join(_ratio(s) for s in speeds if s is not None)
    return f"{found['nodes']}: {shown}" if shown else str(found["nodes"])


def _ratio(speed: dict[str, Any]) -> str:
    """A ratio; "=" where the runtime ends with the original's graph, "~" before one whose interval is wider than a fifth."""
    if speed.get("same"):
        return "="
    return f"{'~' if speed['high'] - speed['low'] > _WIDE * speed['ratio'] else ''}{speed['ratio']:.2f}"


def shortfalls(rows: Sequence[dict[str, Any]], threads: Sequence[int]) -> list[str]:
    """Where a result of graphopt is not right, larger, slower, or has more nodes than the best of the tools like it."""
    found = []
    for row in rows:
        for name, mine in row["tools"].items():
            if TOOLS[name].preset is not None:
                found += [f"{row['model']}, {name}: {what}" for what in _short(row, name, mine, threads)]
    return found


def _short(row: dict[str, Any], name: str, mine: dict[str, Any], threads: Sequence[int]) -> list[str]:
    if mine["status"] != "ok" or mine["verdict"] not in RIGHT:
        return [f"{mine['status']} {mine.get('verdict', '')} {mine['error']}".strip()]
    said = []
    if mine["bytes"] > _GROWTH * row["original"]["bytes"]:
        said.append(f"{mine['bytes']:,} bytes of {row['original']['bytes']:,}")
    fewer = {
        other: found["nodes"]
        for other, found in row["tools"].items()
        if TOOLS[other].preset is None and (TOOLS[other].portable or not TOOLS[name].portable) and found.get("verdict") in RIGHT
        and found["nodes"] < mine["nodes"]
    }
    if fewer:
        best = min(fewer, key=fewer.__getitem__)
        grown = row["tools"][best]["bytes"] / row["original"]["bytes"]
        said.append(f"{mine['nodes']} nodes, {best} has {fewer[best]}" + (f" (in {grown:.2f} times the bytes)" if grown > _GROWTH else ""))
    for thread in map(str, threads):
        speed, best_speed = mine["speed"][thread], mine.get("against_best", {}).get(thread)
        if speed["high"] < _SLOWER:
            said.append(f"{thread} threads: {_interval(speed)} of the original")
        if best_speed is not None and best_speed["high"] < _SLOWER:
            said.append(f"{thread} threads: {_interval(best_speed)} of {best_speed['tool']}")
    return said


def _interval(speed: dict[str, Any]) -> str:
    return f"{speed['ratio']:.3f} ({speed['low']:.3f} to {speed['high']:.3f})"


def summary(rows: Sequence[dict[str, Any]], threads: Sequence[int]) -> str:
    """By tool: results that are right, wrong or missing, and on how many models graphopt's is faster or slower beyond noise."""
    lines = ["| tool | right | wrong | crash or timeout | faster than the original | slower |", "|---|---|---|---|---|---|"]
    for name in TOOLS:
        mine = [row["tools"][name] for row in rows if name in row["tools"]]
        if not mine:
            continue
        right = [f for f in mine if f.get("verdict") in RIGHT]
        lost = [f for f in mine if f["status"] != "ok"]
        speeds = [f["speed"][str(t)] for f in right for t in threads if str(t) in f.get("speed", {})]
        faster, slower = sum(s["low"] > 1.005 for s in speeds), sum(s["high"] < 0.995 for s in speeds)
        wrong = len(mine) - len(right) - len(lost)
        lines.append(f"| {name} | {len(right)} | {wrong} | {len(lost)} | {faster} of {len(speeds)} | {slower} |")
    return "\n".join(lines)
