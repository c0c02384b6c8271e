"""Kernel by kernel: what models that take turns spend their time on, and the graphs that the runtime runs for them.

An extracted operator is not the operator in its model: the runtime fuses neighbours, keeps blocked layouts between them,
and finds inputs in the cache or not. So kernels are timed where they run, by the runtime's profiler.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from graphopt import runtime
from graphopt.measurement.timing import no_collection

_KERNEL = "_kernel_time"
_TURN_S = 0.005  # of runs of one model before the next has its turn; the first of them, on cold caches, does not count
_LEAST_TURNS = 5
_MOST_RUNS = 150  # of a model under the profiler, which writes half a kilobyte for every kernel
_PLAIN_SHARE = 0.3  # of the time goes to runs without the profiler, which say how long a run takes as a whole

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Kernel:
    """A node of the graph that the runtime runs.

    operator: with the domain before those that are not ONNX's. ms: milliseconds a run; 0 where the profiler saw no call.
    shape: of the first output as it was. types: element types of inputs and outputs ("float", "uint8").
    channels_last: it is a kernel whose channels are the last axis of its data, whatever axis they are in the model.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ms: float = 0.0
    shape: tuple[int, ...] | None = None
    types: frozenset[str] = frozenset()
    channels_last: bool = False


@dataclass(frozen=True)
class Trace:
    """kernels: in the order of the graph. run_ms: of a whole run without the profiler."""

    kernels: tuple[Kernel, ...]
    run_ms: float

    @property
    def kernel_ms(self) -> float:
        """Of all kernels."""
        return sum(k.ms for k in self.kernels)


@dataclass(frozen=True)
class Timing:
    """ms: milliseconds by the node's name. shapes, types: of what it gave and took, as they were."""

    ms: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, frozenset[str]]
    run_ms: float


def final_kernels(model: str | PathLike, *, threads: int = 0, provider: str = "cpu", folder: str | PathLike | None = None) -> list[Kernel]:
    """The nodes of the graph that the runtime ends with, untimed. Raises InputError where it turns the model down."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="graphopt-trace-", dir=folder) as place:
        path = Path(place) / "final.onnx"
        runtime.session(model, threads=threads, provider=provider, optimized_path=path)
        graph = onnx.load(path, load_external_data=False).graph
    return [
        Kernel(
            node.name, f"{node.domain}::{node.op_type}" if node.domain else node.op_type, tuple(node.input), tuple(node.output),
            channels_last=node.domain == "com.ms.internal.nhwc" or any(a.name == "channels_last" and a.i for a in node.attribute),
        )
        for node in graph.node
    ]  # fmt: skip


def time_kernels(
    models: Sequence[str | PathLike | bytes],
    feeds: Mapping[str, Any],
    *,
    threads: int = 0,
    provider: str = "cpu",
    optimize: bool = True,
    seconds: float = 3.0,
    progress: Progress | None = None,
) -> list[Timing]:
    """Milliseconds of each kernel of each model, from runs that take turns, and of whole runs without the profiler.

    seconds: for all of it, sessions not included. progress: called with (tenths of the time that are over, 10).
    Raises InputError and ProviderError as `runtime.session` and `runtime.run` do.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-trace-") as folder:
        made = [
            runtime.session(m, optimize=optimize, threads=threads, provider=provider, profile_prefix=Path(folder) / f"run{i}")
            for i, m in enumerate(models)
        ]
        counted = _take_turns(made, feeds, seconds * (1 - _PLAIN_SHARE), progress, events=True)[0]
        files = [Path(session.end_profiling()) for session in made]
        events = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    made.clear()
    plain = [runtime.session(m, optimize=optimize, threads=threads, provider=provider) for m in models]
    run_ms = _take_turns(plain, feeds, seconds * _PLAIN_SHARE, None)[1]
    return [_timing(e, kept, ms) for e, kept, ms in zip(events, counted, run_ms, strict=True)]


def join(kernels: Sequence[Kernel], timing: Timing) -> Trace:
    """Nodes with what was measured of them."""
    timed = (
        replace(k, ms=timing.ms.get(k.name, 0.0), shape=timing.shapes.get(k.name), types=timing.types.get(k.name, frozenset()))
        for k in kernels
    )
    return Trace(tuple(timed), timing.run_ms)


def _take_turns(
    sessions: Sequence[Any], feeds: Mapping[str, Any], seconds: float, progress: Progress | None, *, events: bool = False
) -> tuple[list[list[int]], list[float]]:
    """For each session the numbers of the runs that count (0 is the first), and milliseconds of one that nothing disturbed."""
    fed = dict(feeds)
    done = [0] * len(sessions)
    counted: list[list[int]] = [[] for _ in sessions]
    taken: list[list[float]] = [[] for _ in sessions]
    lengths = []
    for i, session in enumerate(sessions):
        runtime.run(session, feeds)
        start = time.perf_counter()
        session.run(None, fed)
        lengths.append(max(time.perf_counter() - start, 1e-5))
        done[i] += 2
    runs = [max(1, min(10, round(_TURN_S / length))) for length in lengths]
    most = _MOST_RUNS if events else 10**9
    start = time.perf_counter()
    turns = 0
    with no_collection():
        while turns < _LEAST_TURNS or (time.perf_counter() - start < seconds and max(done) < most):
            for i in range(len(sessions)) if turns % 2 else reversed(range(len(sessions))):
                for n in range(runs[i] + 1):
                    before = time.perf_counter()
                    sessions[i].run(None, fed)
                    if n or lengths[i] > 10 * _TURN_S:  # of a run that long the caches are its own business
                        counted[i].append(done[i])
                        taken[i].append(time.perf_counter() - before)
                    done[i] += 1
                    if n == 0 and lengths[i] > 10 * _TURN_S:
                        break
            turns += 1
            spent = time.perf_counter() - start
            if progress:
                progress(min(10, int(10 * spent / seconds)) if seconds else 10, 10)
            if turns >= 2 and spent > 3 * seconds:
                break
    return counted, [_undisturbed(t) * 1e3 for t in taken]


def _timing(events: list[dict], counted: Sequence[int], run_ms: float) -> Timing:
    """By node, from the profiler's events (microseconds). A node inside a loop counts with all of its calls."""
    whole = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: e["ts"])
    kernels = sorted((e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)), key=lambda e: e["ts"])
    wanted, found = set(counted), []
    at = 0
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, frozenset[str]] = {}
    for number, run in enumerate(whole):
        end, spent = run["ts"] + run["dur"], {}
        while at < len(kernels) and kernels[at]["ts"] <= end:
            event = kernels[at]
            at += 1
            if number not in wanted:
                continue
            name = event["name"].removesuffix(_KERNEL)
            spent[name] = spent.get(name, 0.0) + event["dur"]
            if name not in types:
                args = event["args"]
                outputs = args.get("output_type_shape") or []
                types[name] = frozenset(t for each in (*(args.get("input_type_shape") or []), *outputs) for t in each)
                if outputs:
                    shapes[name] = tuple(next(iter(outputs[0].values()), ()))
        if number in wanted:
            found.append(spent)
    names = {name for spent in found for name in spent}
    return Timing({name: _middle([spent.get(name, 0.0) for spent in found]) / 1e3 for name in names}, shapes, types, run_ms)


def _undisturbed(values: list[float]) -> float:
    """The 10th percentile: of a long run something else takes a part more often than of a single kernel."""
    return sorted(values)[len(values) // 10] if values else 0.0


def _middle(values: list[float]) -> float:
    """The mean of the values between the 5th and the 40th percentile.

    The profiler counts whole microseconds, so a single value would not tell 2 from 2.9; and what else the machine does only
    ever adds to a value, the more so to a kernel that waits for the slowest of several threads.
    """
    ordered = sorted(values)
    first, last = len(ordered) // 20, max(1, (4 * len(ordered) + 9) // 10)
    part = ordered[first:last]
    return sum(part) / len(part)
