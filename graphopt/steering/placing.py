"""Which applications of passes that narrow are worth it on the target: placed by measurement, and raced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from graphopt.measurement import Speed, Target
from graphopt.pipeline.runner import Candidate, Hold
from graphopt.placement import Placement
from graphopt.placement.place import Placer, Unplaceable
from graphopt.placement.units import narrowing
from graphopt.rewriting.base import Pass

_SECONDS = 30.0  # after which nothing more is refined
_RACE_SECONDS = 8.0
_REFINED = 2  # times that a placement is corrected by what it turns out to be
_ALIKE = 0.01  # what running more on integers must gain over running less


class Bench(Protocol):
    """What placing needs."""

    def build(self, hold: Hold) -> Candidate: ...

    def keep(self, candidate: Candidate) -> Path: ...

    def feeds(self) -> Mapping[str, Any]: ...

    def race_all(self, candidates: Sequence[Candidate], seconds: float) -> list[Speed]: ...

    def tell(self, text: str) -> None: ...


@dataclass
class Placing:
    """What came of it.

    Attributes:
        candidate: the one that is fastest.
        placement: what was predicted; without units where nothing could be.
        kept: which of "all", "placed" and "float" the candidate is.
        reason: why, in one clause.
        measured_ms: milliseconds a run, by the same names.
        seconds: that it all took.
    """

    candidate: Candidate
    placement: Placement
    kept: str
    reason: str
    measured_ms: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def text(self) -> str:
        """The outcome in one line."""
        units = self.placement.units
        narrow = sum(unit.narrow for unit in units) if self.kept == "placed" else len(units) if self.kept == "all" else 0
        return f"{narrow} of {len(units)} units narrowed: {self.reason}" if units else self.reason

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text(), "kept": self.kept, "reason": self.reason, "predicted_ms": dict(self.placement.predicted_ms),
            "measured_ms": self.measured_ms, "seconds": self.seconds, "units": [unit.to_dict() for unit in self.placement.units],
        }  # fmt: skip


def place(
    bench: Bench,
    candidate: Candidate,
    passes: Iterable[Pass],
    target: Target,
    *,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Placing | None:
    """The candidate with its units where they are fastest; None where no pass narrowed any.

    A placement is predicted from traces of the candidate with and without its units, then built, traced itself, and
    corrected by that. What is left stands a race with everything narrowed and nothing: the fastest is kept, and of
    those that are as good as even the one with the least on integers.

    Raises:
        InputError: the runtime turns a candidate down.
    """
    names = [step.name for step in passes if step.narrows]
    applications = narrowing(candidate, names)
    if not applications:
        return None
    started = clock()
    bench.tell("placing units in float and on integers")
    plain = bench.build(replace(candidate.hold, passes=candidate.hold.passes | set(names)))
    placer = Placer(bench.keep, bench.feeds(), target, progress)
    try:
        placement = placer.place(plain, candidate, applications)
    except Unplaceable as error:
        return Placing(candidate, Placement(), "all", f"not placed: {error}", seconds=clock() - started)
    whole = dict(placement.predicted_ms)  # of candidates that were traced; later ones know what they cost next to others
    tried: list[tuple[Placement, Candidate, float]] = []
    for _ in range(1 + _REFINED):
        if not placement.hold or placement.hold == applications.keys() or any(placement.hold == p.hold for p, _, _ in tried):
            break
        if tried and clock() - started > _SECONDS - _RACE_SECONDS:
            break
        made = held_back(bench, candidate, placement.hold, names)
        refined, traced_ms = placer.refine(made, candidate)
        tried.append((placement, made, traced_ms))
        placement = refined
    contenders = {"all": candidate, "float": plain}
    if tried:
        placement, made, _ = min(tried, key=lambda t: t[2])
        placement = placer.settled(placement)
        contenders["placed"], whole["placed"] = made, placement.predicted_ms["placed"]
    placement = replace(placement, predicted_ms=whole)
    bench.tell("racing what was placed")
    speeds = bench.race_all(list(contenders.values()), _RACE_SECONDS)
    measured = {"all": speeds[0].before_ms}
    ratios = {"all": 1.0}
    for name, speed in zip(list(contenders)[1:], speeds, strict=True):
        ratios[name], measured[name] = speed.ratio, speeds[0].before_ms / speed.ratio
    kept = _fastest(ratios)
    return Placing(contenders[kept], placement, kept, _why(kept, ratios), measured, clock() - started)


def _fastest(ratios: Mapping[str, float]) -> str:
    """The fastest, but for what runs less on integers and is as good as even."""
    best = max(ratios.values())
    return next(name for name in ("float", "placed", "all") if name in ratios and ratios[name] >= best * (1 - _ALIKE))


def _why(kept: str, ratios: Mapping[str, float]) -> str:
    if kept == "all":
        return f"everything on integers is fastest, {1 / ratios['float']:.2f}x beside float"
    if kept == "float":
        return f"float is fastest, {ratios['float']:.2f}x beside everything on integers"
    return f"{ratios['placed']:.2f}x beside everything on integers, {ratios['placed'] / ratios['float']:.2f}x beside float"


def held_back(bench: Bench, candidate: Candidate, hold: frozenset[int], names: Sequence[str]) -> Candidate:
    """The candidate without some of its applications of some passes, one pass after the other.

    What one pass is kept from narrowing a later one may come to, under new numbers: it is kept from that, too.
    """
    wanted = {(a.pass_name, a.label) for a in candidate.applications if a.number not in hold}
    first = next((a.pass_name for a in candidate.applications if a.number in hold), "")
    kept = candidate.hold.applications | {a.number for a in candidate.applications if a.number in hold and a.pass_name == first}
    made = bench.build(replace(candidate.hold, applications=kept))
    for name in names:
        more = {a.number for a in made.applications if a.pass_name == name and (name, a.label) not in wanted}
        if more:
            kept |= more
            made = bench.build(replace(candidate.hold, applications=kept))
    return made
