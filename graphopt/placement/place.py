"""Placement by measurement: candidates in float and narrowed are traced, their costs combined, and the minimum cut taken."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graphopt import runtime
from graphopt.measurement import Target
from graphopt.measurement.traces import Kernel, Timing, Trace, final_kernels, join, time_kernels
from graphopt.pipeline.runner import Application, Candidate
from graphopt.placement import store
from graphopt.placement.attribution import NARROW, Attributed, attribute
from graphopt.placement.conversions import Conversions
from graphopt.placement.cut import Costs, cheapest
from graphopt.placement.observing import Observed, combine, observe
from graphopt.placement.result import Placement, UnitCost
from graphopt.placement.units import Layout, lay_out, results_of

_RUNS = 150  # what the time for a trace covers of runs of each candidate
_SECONDS = (1.0, 6.0)  # for a trace, at the least and at the most
_LARGEST = 1 << 30  # bytes of a candidate: the runtime writes the graph that it runs, with all weights
_LEAST_MS = 2e-4  # of a kernel
_MOST_PROFILER_MS = 4e-3
#: What narrowing a unit must save, as a share of its time in float: it costs precision, and times are not known to less.
LEAST = 0.01


class Unplaceable(Exception):
    """Why nothing can be placed, in one clause."""


@dataclass(frozen=True)
class Profiler:
    """What the profiler itself adds to the time of a kernel, by how much it has to write of one.

    plain_ms: of a kernel. narrow_ms: of one on narrow numbers, which has scales and zero points for inputs. Below 0: what
    lies between kernels takes more than that.
    """

    plain_ms: float
    narrow_ms: float

    @classmethod
    def of(cls, first: Trace, second: Trace) -> Profiler:
        """From the runs without it, of a candidate in float and of one on integers."""
        plain = _bounded((first.kernel_ms - first.run_ms) / max(1, len(first.kernels)))
        on_narrow = sum(bool(k.types & NARROW) for k in second.kernels)
        left = second.kernel_ms - second.run_ms - plain * (len(second.kernels) - on_narrow)
        return cls(plain, _bounded(left / max(1, on_narrow)))

    def off(self, trace: Trace) -> Trace:
        """A trace without it."""
        return Trace(
            tuple(
                replace(k, ms=max(_LEAST_MS, k.ms - (self.narrow_ms if k.types & NARROW else self.plain_ms))) if k.ms else k
                for k in trace.kernels
            ),
            trace.run_ms,
        )


def _bounded(ms: float) -> float:
    return min(_MOST_PROFILER_MS, max(-_MOST_PROFILER_MS, ms))


@dataclass
class Placer:
    """Places the units of one candidate.

    Attributes:
        keep: writes a candidate to a file of its own folder.
        feeds: what to time on.
        target: where.
        progress: called with (done, total).
    """

    keep: Callable[[Candidate], Path]
    feeds: Mapping[str, Any]
    target: Target
    progress: Callable[[int, int], None] | None = None
    seen: list[tuple[Attributed, Observed]] = field(default_factory=list)

    def place(self, plain: Candidate, full: Candidate, applications: Mapping[int, Application]) -> Placement:
        """Where each unit is best.

        Args:
            plain: the candidate without the applications. full: with all of them.
            applications: of the units, by number.

        Raises:
            Unplaceable: kernels cannot be told apart on this target, or the model is too large to look into.
            InputError: the runtime turns a candidate down.
        """
        if runtime.resolve_provider(self.target.provider) != runtime.CPU:
            raise Unplaceable(f"the time of single kernels is not known on {self.target.provider}")
        self.applications = dict(applications)
        self.full = lay_out(full, self.applications, feeds=self.feeds)
        self.results = results_of(self.full)
        self.plain = lay_out(plain, self.applications, self.results, self.feeds)
        (first, second) = self._trace([(plain, self.plain), (full, self.full)])
        self.profiler = Profiler.of(first, second)
        first, second = self.profiler.off(first), self.profiler.off(second)
        self.scale = (first.run_ms + second.run_ms) / (first.kernel_ms + second.kernel_ms)
        in_float = attribute(self.plain, first)
        self.seen = [(in_float, observe(in_float))]
        self._see(self.full, second)
        self.full_ms = second.kernel_ms
        self.rest = first.kernel_ms - sum(self.seen[0][1].unit.values())
        signed = any("int8" in k.types for k in second.kernels if k.operator == "QuantizeLinear")
        self.conversions = Conversions(self.target, signed)
        self.left = 0.0
        costs = self._costs()
        self.left = self.full_ms - costs.total(costs.narrow)
        return self._solve()

    def refine(self, placed: Candidate, full: Candidate) -> tuple[Placement, float]:
        """The placement again, with what a candidate that was placed shows; and that candidate's milliseconds as they were traced."""
        layout = lay_out(placed, self.applications, self.results)
        trace, beside = (self.profiler.off(t) for t in self._trace([(placed, layout), (full, self.full)]))
        drift = self.full_ms / beside.kernel_ms  # of the machine since the first trace
        trace = Trace(tuple(replace(k, ms=k.ms * drift) for k in trace.kernels), trace.run_ms * drift)
        self._see(layout, trace)
        return self._solve(), self.scale * trace.kernel_ms

    def settled(self, placement: Placement) -> Placement:
        """A placement with what its units cost by what was seen of itself, where it was refined, and otherwise next to it."""
        chosen = frozenset(self.applications) - placement.hold
        own = [s for s in self.seen if s[0].layout.narrow == chosen]
        costs = self._costs(own)
        saves, units = self._units(costs, chosen)
        return replace(self._answering(placement, costs), saves=saves, units=units)

    def _answering(self, placement: Placement, costs: Costs) -> Placement:
        """The placement, ready to be asked of others."""

        def choose(penalties: Mapping[int, float]) -> frozenset[int]:
            dearer = {n: ms + LEAST * costs.in_float[n] + penalties.get(n, 0.0) / self.scale for n, ms in costs.narrow.items()}
            return cheapest(Costs(costs.in_float, dearer, costs.crossings, costs.rest))

        return replace(placement, predict=lambda narrow: self.scale * costs.total(narrow), choose=choose)

    # --- measuring ----------------------------------------------------------------------------------------------

    def _see(self, layout: Layout, trace: Trace) -> None:
        found = attribute(layout, trace, self.seen[0][0])
        self.seen.append((found, observe(found, self.seen[0][0])))

    def _trace(self, candidates: list[tuple[Candidate, Layout]]) -> list[Trace]:
        """Candidates that take turns; figures that are known from an earlier run are not taken again."""
        paths: list[Path] = []
        try:
            graphs: list[list[Kernel]] = []
            for candidate, layout in candidates:
                with layout.view.numbered():
                    paths.append(self.keep(candidate))
                size = sum(file.stat().st_size for file in paths[-1].parent.iterdir())
                if size > _LARGEST:
                    raise Unplaceable(f"the model is too large to look into ({size / 1e9:.1f} GB)")
                graphs.append(
                    final_kernels(paths[-1], threads=self.target.threads, provider=self.target.provider, folder=paths[-1].parent)
                )
            return [join(g, t) for g, t in zip(graphs, self._timings(paths, graphs), strict=True)]
        finally:
            for path in paths:
                shutil.rmtree(path.parent, ignore_errors=True)

    def _timings(self, paths: list[Path], graphs: list[list[Kernel]]) -> list[Timing]:
        shapes = {name: [str(getattr(v, "dtype", "")), list(getattr(v, "shape", []))] for name, v in self.feeds.items()}
        described = [sorted(_identity(k) for k in graph) for graph in graphs]
        sizes = [path.stat().st_size for path in paths]  # they tell weights of other shapes apart
        name = store.key("trace", described, sizes, shapes, self.target.to_dict(), runtime.version())
        kept = store.get(name)
        if isinstance(kept, list) and len(kept) == len(graphs):
            try:
                return [_timing_of(each, graph) for each, graph in zip(kept, graphs, strict=True)]
            except (KeyError, TypeError, ValueError):
                pass  # written by another version
        run_s = self._run_seconds(paths)
        low, high = _SECONDS
        timings = time_kernels(
            paths, self.feeds, threads=self.target.threads, provider=self.target.provider,
            seconds=min(high, max(low, _RUNS * run_s)), progress=self.progress,
        )  # fmt: skip
        store.put(name, [_plain(t, graph) for t, graph in zip(timings, graphs, strict=True)])
        return timings

    def _run_seconds(self, paths: list[Path]) -> float:
        session = runtime.session(paths[0], threads=self.target.threads, provider=self.target.provider)
        runtime.run(session, self.feeds)
        start = time.perf_counter()
        runtime.run(session, self.feeds)
        return (time.perf_counter() - start) * len(paths)

    # --- deciding -----------------------------------------------------------------------------------------------

    def _costs(self, again: list[tuple[Attributed, Observed]] | None = None) -> Costs:
        seen = [*self.seen, *(again or [])]
        return combine(self.seen[0][0], self.seen[1][0], seen, self.conversions, self.rest, self.left)

    def _solve(self) -> Placement:
        costs = self._costs()
        everything = frozenset(costs.narrow)
        charged = {n: ms + LEAST * costs.in_float[n] for n, ms in costs.narrow.items()}
        chosen = cheapest(Costs(costs.in_float, charged, costs.crossings, costs.rest))
        predicted = {"float": costs.total(()), "all": costs.total(everything), "placed": costs.total(chosen)}
        saves, units = self._units(costs, chosen)
        return self._answering(Placement(everything - chosen, saves, {k: self.scale * v for k, v in predicted.items()}, units), costs)

    def _units(self, costs: Costs, chosen: frozenset[int]) -> tuple[dict[int, float], tuple[UnitCost, ...]]:
        saves = {n: self.scale * costs.saves(n, chosen) for n in costs.narrow}
        return saves, tuple(self._unit(n, costs, chosen, saves) for n in sorted(costs.narrow))

    def _unit(self, number: int, costs: Costs, chosen: frozenset[int], saves: Mapping[int, float]) -> UnitCost:
        about = self.applications[number]
        operator = self.plain.view.nodes[self.plain.nodes[number][0]].op_type
        in_float, narrow = self.scale * costs.in_float[number], self.scale * costs.narrow[number]
        if number in chosen:
            why = "faster on integers" if narrow < in_float else "between units on integers, where a conversion would cost more"
        elif narrow >= in_float:
            why = "its kernel is slower on integers"
        else:
            why = "conversions would cost what its kernel saves"
        return UnitCost(number, about.pass_name, about.label, operator, number in chosen, why, in_float, narrow, saves[number])


def _identity(kernel: Kernel) -> str:
    """What names a kernel in every session alike: the runtime numbers what it adds in no fixed order, but not what that reads and gives."""
    return "|".join((kernel.operator, *kernel.inputs, "", *kernel.outputs))


def _plain(timing: Timing, graph: list[Kernel]) -> dict[str, Any]:
    """Figures by what names a kernel in every session, as JSON holds them."""
    rows = {
        _identity(k): [timing.ms[k.name], timing.shapes.get(k.name), sorted(timing.types.get(k.name, ()))]
        for k in graph
        if k.name in timing.ms
    }
    return {"kernels": rows, "run_ms": timing.run_ms}


def _timing_of(kept: Mapping[str, Any], graph: list[Kernel]) -> Timing:
    rows = {k.name: kept["kernels"][_identity(k)] for k in graph if _identity(k) in kept["kernels"]}
    return Timing(
        {name: float(row[0]) for name, row in rows.items()},
        {name: tuple(row[1]) for name, row in rows.items() if row[1] is not None},
        {name: frozenset(row[2]) for name, row in rows.items()},
        float(kept["run_ms"]),
    )
