"""Where a model spends its time, operator by operator, as ONNX Runtime's own profiler sees it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from graphopt import runtime

_KERNEL = "_kernel_time"
# Operators whose time the profiler counts twice: their own event spans the events of the subgraphs that they run.
_CONTAINERS = frozenset({"If", "Loop", "Scan"})
# The profiler stops recording at a million events, and every event costs the run some microseconds.
_MAX_EVENTS = 500_000


@dataclass(frozen=True)
class OpTime:
    """Time of one node, or of all nodes of one operator.

    name: the node's name in the runtime's final graph (fusions rename); the operator's for a row of an operator.
    ms: mean milliseconds a run, subgraphs of an If, Loop or Scan not included. share: of the time of all rows, 0 to 1.
    count: kernel calls a run.
    """

    name: str
    operator: str
    provider: str
    ms: float
    share: float
    count: float


@dataclass(frozen=True)
class Profile:
    """nodes, operators: rows, the most expensive first. run_ms: mean milliseconds of a whole run, profiler included."""

    nodes: list[OpTime]
    operators: list[OpTime]
    run_ms: float
    runs: int

    def to_dict(self) -> dict:
        return asdict(self)


def profile(
    model: str | PathLike | bytes,
    feeds: Mapping[str, Any],
    *,
    threads: int = 0,
    provider: str = "cpu",
    optimize: bool = True,
    runs: int = 50,
    max_seconds: float = 3.0,
) -> Profile:
    """Runs the model with the profiler on, up to `runs` times or `max_seconds`, once at least after a warm-up.

    optimize: profile the graph that the runtime ends with; off, the graph as it is written.
    Raises InputError and ProviderError as `runtime.session` and `runtime.run` do.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-profile-") as folder:
        session = runtime.session(model, optimize=optimize, threads=threads, provider=provider, profile_prefix=Path(folder) / "run")
        start = time.perf_counter()
        runtime.run(session, feeds)
        done, fed = 0, dict(feeds)
        while not done or (done < runs and time.perf_counter() - start < max_seconds):
            session.run(None, fed)
            done += 1
        # A file cut short by a full disk is a broken JSON: better an error than a table made from a part.
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _summarize(events)


def _summarize(events: list[dict]) -> Profile:
    """Rows from the profiler's events (times in microseconds). The first run, the warm-up, is left out."""
    whole = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: e["ts"])[1:]
    if not whole:
        raise ValueError("the runtime's profile holds no run after the warm-up")
    since = whole[0]["ts"]
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL) and e["ts"] >= since]
    kernels.sort(key=lambda e: (e["ts"], -e["dur"]))
    if len(events) >= _MAX_EVENTS:
        # Runs at the end may lack events: count only those up to the last kernel seen.
        last = max(e["ts"] for e in kernels)
        whole = [w for w in whole if w["ts"] + w["dur"] <= last] or whole[:1]
        end = whole[-1]["ts"] + whole[-1]["dur"]
        kernels = [e for e in kernels if e["ts"] <= end]
    runs = len(whole)
    nodes: dict[tuple, list[float]] = {}
    for event, own in _own_times(kernels):
        args = event["args"]
        key = (event["name"].removesuffix(_KERNEL), args.get("op_name", "?"), args.get("provider", ""), args.get("node_index", ""))
        entry = nodes.setdefault(key, [0.0, 0])
        entry[0] += own
        entry[1] += 1
    operators: dict[tuple, list[float]] = {}
    for (_, operator, provider, _), (us, count) in nodes.items():
        entry = operators.setdefault((operator, operator, provider), [0.0, 0])
        entry[0] += us
        entry[1] += count
    return Profile(
        nodes=_rows(nodes.items(), runs),
        operators=_rows(operators.items(), runs),
        run_ms=sum(w["dur"] for w in whole) / runs / 1e3,
        runs=runs,
    )


def _own_times(kernels: list[dict]) -> Iterable[tuple[dict, float]]:
    """(event, microseconds less those of the events inside it), for events in the order of their starts."""
    own = [float(e["dur"]) for e in kernels]
    open_: list[int] = []  # containers that the event at hand may lie in
    for i, event in enumerate(kernels):
        while open_ and event["ts"] >= kernels[open_[-1]]["ts"] + kernels[open_[-1]]["dur"]:
            open_.pop()
        if open_:
            own[open_[-1]] -= event["dur"]
        if event["args"].get("op_name") in _CONTAINERS:
            open_.append(i)
    # The clock ticks in whole microseconds: a container may seem shorter than the sum of its parts.
    return ((e, max(0.0, o)) for e, o in zip(kernels, own, strict=True))


def _rows(entries: Iterable[tuple[tuple, list[float]]], runs: int) -> list[OpTime]:
    entries = list(entries)
    total = sum(us for _, (us, _) in entries) or 1.0
    rows = [OpTime(key[0], key[1], runtime.short_name(key[2]), us / runs / 1e3, us / total, count / runs) for key, (us, count) in entries]
    return sorted(rows, key=lambda r: (-r.ms, r.name))
