"""Samples out of nothing but the graph: shapes, dtypes, and what the nodes do with their inputs.

The reference is the judge of what it takes. Sizes are searched the most plausible first; what an error of the runtime
says (a number, the range of an index) is tried next. Once the reference runs, every free dimension is moved to a second
size, and values are drawn in several statistics until samples prove something (see `informative`) or the time is up.
"""

from __future__ import annotations

import heapq
import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError
from graphopt.verification.bounds import Bounds, Facts
from graphopt.verification.dims import USUAL, Group, Layout, layout
from graphopt.verification.informative import independent, judge, ranges
from graphopt.verification.samples import Sample
from graphopt.verification.values import STATISTICS, Draw, choices_of, draw, is_mask

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Point = tuple[tuple[str, float], ...]  # a point of the search: group or choice -> size or value, sorted

_NUMBER = re.compile(r"(?<![\w.])(\d{1,6})(?![\w.])")
_RANGE = re.compile(r"range \[-?\d+, ?(\d+)\]")
_OUTSIDE = re.compile(r"out of (range|bounds)", re.I)

# Seconds of a run of the reference: above the first, a model is not run at a larger size; above the second, not timed there.
_QUICK, _LONGEST = 0.2, 0.5
_MORE_SECONDS = 4.0  # for the search of the usual size, on top


@dataclass
class Synthesis:
    """What came of it.

    samples: at least one for each of `sizes`, those that prove something first where that is known, and one of a usual
    size last where that is larger; sizes: the sizes of the free dimensions that the reference ran at (and the values of
    inputs that select what it does); warnings: what the samples do not cover; failure: why there are none, in one line
    with what to do; None where there are some.
    """

    samples: list[Sample] = field(default_factory=list)
    sizes: list[dict[str, int | float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failure: str | None = None
    informative: int = 0
    attempts: int = 0


def synthesize(
    model: ir.Model,
    run: Run,
    *,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    count: int = 4,
    seconds: float = 8.0,
    attempts: int = 250,
) -> Synthesis:
    """Samples on which the reference runs, at two sizes or more of every free dimension where it takes them.

    model: the graph, which is read and not changed; run: runs the reference on feeds and raises GraphoptError when it
    turns them down; seed: of all random values; shapes: input -> shape asked for (below 0: free); count: samples wanted
    (each size that was found gets one even so); seconds: past it nothing new is started; attempts: runs at most.

    Raises OptionError where `shapes` does not fit the model. Everything else is told in the result.
    """
    plan = layout(model, shapes)
    if refused := _refusal(plan):
        return Synthesis(failure=f"{refused}; give some with --samples")
    walk = Bounds(model)
    facts = {v.name: walk.of(v) for v in model.graph.inputs if v.name not in model.graph.initializers}
    search = _Search(plan, facts, run, seed, time.monotonic() + seconds, attempts)
    if not plan.inputs:
        found = [((), {})]
    elif not (found := search.points()):
        return Synthesis(failure=_plain(search.error), attempts=search.attempts)
    result = Synthesis(warnings=search.warnings)
    _fill(result, search, found, ranges(model), independent(model), count)
    if not result.samples:
        return Synthesis(failure=_plain(search.error), attempts=search.attempts)
    if (usual := search.usual(found[0][0])) is not None:
        result.samples.append(Sample(search.feeds(usual, "natural", seed), _origin(search, usual, "natural"), usual=True))
        result.sizes.append(_label(search, usual))
    result.attempts = search.attempts
    return result


def _refusal(plan: Layout) -> str | None:
    for spec in plan.inputs:
        if spec.kind == "sparse":
            return f"input '{spec.name}' is a sparse tensor, which graphopt cannot synthesize"
        if spec.dtype == ir.DataType.UNDEFINED:
            return f"input '{spec.name}' is neither a tensor nor a list of tensors, so graphopt cannot synthesize it"
    return None


def _plain(error: Exception | None) -> str:
    why = " ".join(str(error).split()) if error else "no attempt was possible in the time given"
    return f"no inputs could be synthesized that the model itself runs on (last error: {why}); give some with --samples"


class _Search:
    """Finds points (sizes of groups, values of selecting inputs) at which the reference runs."""

    def __init__(self, plan: Layout, facts: Mapping[str, Facts], run: Run, seed: int, deadline: float, attempts: int):
        self.plan, self.facts, self.seed = plan, facts, seed
        self.error: Exception | None = None
        self.warnings: list[str] = []
        self.attempts = 0
        self.bound: int | None = None  # on integers that the graph does not bound; an error of the runtime taught it
        self.cost = self.took = 0.0  # seconds of the slowest run so far, and of the last one
        self.groups: list[Group] = []
        self.choices = {s.name: c for s in plan.inputs if (c := choices_of(s, facts[s.name]))}
        self._run, self._deadline, self._most = run, deadline, attempts
        self._known: dict[tuple[Point, int | None], bool] = {}

    def late(self, share: float = 1.0) -> bool:
        """Whether the time or the attempts are used up (share: of the attempts)."""
        return time.monotonic() > self._deadline or self.attempts >= self._most * share

    def points(self) -> list[tuple[Point, dict[str, int]]]:
        """Points that run, with the sizes of all slots: the first, then others until each free dimension has two."""
        for tied in (True, False):
            self.groups = self.plan.groups(tied)
            candidates = {g.key: [float(s) for s in g.sizes] for g in self.groups}
            candidates |= {name: list(values) for name, values in self.choices.items()}
            first = self._find(candidates, share=0.4 if tied else 0.7)
            if first is not None:
                break
        else:
            return []
        found = [first]
        start = dict(first)
        free = [k for k in candidates if not any(g.key == k and g.pinned is not None for g in self.groups)]
        # All at once, the plausible case; then one by one those that did not move, the others moving where they must.
        others = {k: [c for c in v if c != start[k]] if k in free else v for k, v in candidates.items()}
        if free and all(others[k] for k in free):
            second = self._find(others, limit=16)
            if second is not None:
                found.append(second)
        for key in free:
            if any(dict(p)[key] != start[key] for p in found):
                continue
            mixed = {k: list(dict.fromkeys([start[k], *v])) for k, v in candidates.items()}
            mixed[key] = others[key]
            moved = self._find(mixed, limit=48) if others[key] else None
            if moved is not None:
                found.append(moved)
            elif key in self.choices:
                self.warnings.append(f"input '{key}' was only {start[key]:g}: the model ran with no other value that was tried")
            else:
                self.warnings.append(f"dimension {key} was only {start[key]:g}: the model ran at no other size that was tried")
        return [(p, self.sizes(p)) for p in found]

    def usual(self, first: Point) -> Point | None:
        """A point at which such models are used, larger than the first; None: there is none, or it takes too long."""
        if self.took > _QUICK:  # of the last run: the slowest one made the session
            return None
        self._deadline = max(self._deadline, time.monotonic()) + _MORE_SECONDS
        start = dict(first)
        for level in range(2):
            candidates = {key: [size] for key, size in start.items()}
            for group in self.groups:
                larger = [float(s) for s in USUAL.get(group.role, ())[level:] if s > start[group.key]]
                if group.pinned is None:
                    candidates[group.key] = [*larger, start[group.key]]
            if all(len(sizes) == 1 for sizes in candidates.values()):
                return None
            point = self._find(candidates, limit=32, least=start)
            if point is None or point == first:
                return None
            if self.took <= _LONGEST:
                return point
        return None

    def sizes(self, point: Point) -> dict[str, int]:
        """Slot -> size."""
        at = dict(point)
        return {slot: int(at[g.key]) for g in self.groups for slot in g.slots}

    def feeds(self, point: Point, statistic: str, seed: int, ragged: bool = False) -> dict[str, np.ndarray]:
        """Feeds at a point. Raises ValueError where a shape expression has no size there."""
        at = dict(point)
        choices = {k: at[k] for k in self.choices}
        how = Draw(statistic, seed, ragged, choices, self.bound)
        return draw(self.plan, self.facts, self.sizes(point), how)

    def attempt(self, feeds: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The reference's outputs, or None with `error` set."""
        self.attempts += 1
        begun = time.monotonic()
        try:
            outputs = self._run(feeds)
        except GraphoptError as error:
            self.error = error
            return None
        except MemoryError:
            self.error = GraphoptError("out of memory")
            return None
        self.took = time.monotonic() - begun
        self.cost = max(self.cost, self.took)
        return outputs

    def _find(
        self,
        candidates: Mapping[str, list[float]],
        *,
        share: float = 1.0,
        limit: int | None = None,
        least: Mapping[str, float] | None = None,
    ) -> Point | None:
        """The most plausible point that runs: best first by how far down its lists of candidates a point is.

        least: for sizes that an error of the runtime names.
        """
        counter = itertools.count()
        start = {k: v[0] for k, v in candidates.items()}
        heap: list[tuple[float, int, dict[str, float]]] = [(0.0, next(counter), start)]
        seen: set[Point] = set()
        batches = {g.key for g in self.groups if g.role == "batch"}
        tried = 0
        while heap and not self.late(share) and (limit is None or tried < limit):
            cost, _order, at = heapq.heappop(heap)
            point: Point = tuple(sorted(at.items()))
            if point in seen:
                continue
            seen.add(point)
            tried += 1
            message = self._try(point)
            if message is None:
                return point
            for key, values in candidates.items():
                place = values.index(at[key]) if at[key] in values else -1
                if 0 < place + 1 < len(values):
                    step = 4.0 if key in batches else 1.0  # a batch is seldom what is wrong
                    heapq.heappush(heap, (cost + step, next(counter), {**at, key: values[place + 1]}))
            for number in _numbers_in(message):
                for group in self.groups:
                    allowed = candidates[group.key]
                    # A size that the error names. Not for batches, and not where the size that is tried is excluded.
                    # And one step off the lists only, no walk away from them.
                    new = len(allowed) > 1 and number not in allowed and at[group.key] in allowed
                    if new and group.pinned is None and group.role != "batch" and number >= (least or {}).get(group.key, 0):
                        heapq.heappush(heap, (cost + 1.5, next(counter), {**at, group.key: float(number)}))
        return None

    def _try(self, point: Point) -> str | None:
        """None where the reference runs at the point, else what it said."""
        for _ in range(3):  # again where an error taught a bound on the integers
            if self._known.get((point, self.bound)):
                return None
            try:
                feeds = self.feeds(point, "natural", self.seed)
            except ValueError as error:
                self.error = error
                return str(error)
            if self.attempt(feeds) is not None:
                self._known[point, self.bound] = True
                return None
            message = str(self.error)
            taught = _RANGE.search(message)
            if taught is None and not _OUTSIDE.search(message):
                return message
            bound = int(taught[1]) if taught else 1  # no range given: the smallest values that are not all one
            if self.bound is not None and bound >= self.bound:
                return message
            self.bound = bound
        return message


def _numbers_in(message: str) -> list[int]:
    """Sizes that an error speaks of: its numbers of 2 to 65536, at most six."""
    cause = message.rsplit("failed:", 1)[-1]
    return list(dict.fromkeys(n for m in _NUMBER.findall(cause) if 2 <= (n := int(m)) <= 65536))[:6]


def _fill(
    result: Synthesis, search: _Search, points: list[tuple[Point, dict[str, int]]], bounds: Mapping, still: set[str], count: int
) -> None:
    """Draws samples at every point, statistic by statistic, until they prove something or time is up."""
    # A slow model is run some ten times more on every sample by those who compare; one a size must do then.
    count = max(count if search.cost < 0.5 else min(count, 2), len(points))
    kept: list[tuple[bool, Sample]] = []
    done: set[Point] = set()
    masks = any(is_mask(s, search.facts[s.name]) for s in search.plan.inputs)
    seen: dict[Point, list[Mapping[str, Any]]] = {p: [] for p, _ in points}
    turns = [(statistic, point) for statistic in STATISTICS for point, _ in points]
    # A model of integers alone draws anew with every statistic's seed; three rounds of that are enough.
    if not any(s.dtype.is_floating_point() for s in search.plan.inputs):
        turns = turns[: 3 * len(points)]
    for number, (statistic, point) in enumerate(turns):
        proving = sum(good for good, _ in kept)
        if len(kept) >= count and proving >= count:
            break
        if done >= seen.keys() and (search.late() or len(kept) >= 4 * count):
            break
        try:
            feeds = search.feeds(point, statistic, search.seed + number, ragged=masks and number >= len(points))
        except ValueError:
            continue
        outputs = search.attempt(feeds)
        if outputs is None:
            continue
        if not seen[point] and not search.late():
            # One run on other values of the same shapes: outputs that do not move prove nothing.
            probe = search.attempt(search.feeds(point, "normal", search.seed + 1000 + number))
            seen[point] += [probe] if probe is not None else []
        reasons = judge(outputs, seen[point], bounds, still)
        seen[point] = [*seen[point][-2:], outputs]  # a few are enough to see a change
        done.add(point)
        kept.append((not outputs or "" in reasons.values(), Sample(feeds, _origin(search, point, statistic))))
    _choose(result, kept, points, search, count)


def _choose(result: Synthesis, kept, points, search: _Search, count: int) -> None:
    """Those that prove something first; each size keeps one sample whether it proves anything or not."""
    shapes = {id(s): tuple(map(str, s.shapes().items())) for _, s in kept}
    ordered = sorted(kept, key=lambda pair: not pair[0])  # stable: the order of the statistics stays
    chosen: list[tuple[bool, Sample]] = []
    for good, sample in ordered:  # one of each size first
        if shapes[id(sample)] not in {shapes[id(s)] for _, s in chosen}:
            chosen.append((good, sample))
    for good, sample in ordered:
        if len(chosen) < count and all(sample is not s for _, s in chosen):
            chosen.append((good, sample))
    result.samples = [s for _, s in chosen]
    result.informative = sum(good for good, _ in chosen)
    result.sizes = [_label(search, point) for point, _ in points]
    if chosen and not result.informative:
        result.warnings.append("no synthesized sample proves anything: the model's outputs hardly move on any of them")


def _label(search: _Search, point: Point) -> dict[str, int | float]:
    return {k: int(v) if v == int(v) else v for k, v in point}


def _origin(search: _Search, point: Point, statistic: str) -> str:
    floats = any(s.dtype.is_floating_point() for s in search.plan.inputs)
    parts = ([statistic] if floats else []) + [f"{k}={v:g}" for k, v in point]
    return "synthesized: " + (", ".join(parts) or "fixed shapes")
