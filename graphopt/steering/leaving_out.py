"""A candidate beside the same without one pass: the step that every search for what pays is made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from graphopt.measurement import FinalGraph, Speed
from graphopt.pipeline.runner import Candidate, Hold

#: Nobody needs to know how much a pass gains or loses to decide on it, only whether it does.
EVEN = 1.0


class Bench(Protocol):
    """What the searches need: candidates with something held back, the graphs that the runtime makes of them, their speeds."""

    def build(self, hold: Hold) -> Candidate: ...

    def graph_of(self, candidate: Candidate) -> FinalGraph | None: ...

    def race(self, a: Candidate, b: Candidate, seconds: float, decide: float | None = None, *, small: bool = False) -> Speed: ...

    def speed_of(self, candidate: Candidate, seconds: float, *, small: bool = False) -> Speed: ...

    def shapes(self, *, small: bool = False) -> dict[str, list[int]] | None: ...

    def tell(self, text: str) -> None: ...


@dataclass(frozen=True)
class Trial:
    """A candidate without one pass.

    Attributes:
        candidate: that candidate.
        speed: of the candidate with the pass beside it; None where the runtime ends with the same graph for both.
        operators: those that the runtime's graph has more or fewer of with the pass: how many with it, and without.
        idle: the pass is there to keep operators from the runtime's graph, and that has none of them without it either.
    """

    candidate: Candidate
    speed: Speed | None
    operators: dict[str, tuple[int, int]] = field(default_factory=dict)
    idle: bool = False


def leave_out(
    bench: Bench, candidate: Candidate, name: str, seconds: float, *, small: bool = False, hides: frozenset[str] = frozenset()
) -> Trial:
    """The candidate without a pass, and what the pass gained or lost, at the usual size or at the `small` one.

    What counts is the graph that the runtime ends with: where it is the same, so is the speed, and nothing is timed; nor
    where none of the operators that the pass `hides` shows without it.
    """
    bench.tell(f"trying without {name}")
    trial = bench.build(replace(candidate.hold, passes=candidate.hold.passes | {name}))
    with_it, without = bench.graph_of(candidate), bench.graph_of(trial)
    if with_it is None or without is None:
        return Trial(trial, bench.race(trial, candidate, seconds, EVEN, small=small))
    if with_it == without:
        return Trial(trial, None)
    names = sorted(with_it.operators.keys() | without.operators.keys())
    counts = {op: (with_it.operators.get(op, 0), without.operators.get(op, 0)) for op in names}
    changed = {op: both for op, both in counts.items() if both[0] != both[1]}
    if hides and not any(counts.get(op, (0, 0))[1] > counts.get(op, (0, 0))[0] for op in hides):
        return Trial(trial, None, changed, idle=True)
    return Trial(trial, bench.race(trial, candidate, seconds, EVEN, small=small), changed)


def applied_passes(candidate: Candidate) -> list[str]:
    """The passes that applied anything, in the order in which they first did."""
    return list(dict.fromkeys(a.pass_name for a in candidate.applications))
