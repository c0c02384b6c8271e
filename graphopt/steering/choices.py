"""Passes that can lose on some targets are kept or undone by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt.measurement import Speed
from graphopt.model import count_nodes
from graphopt.pipeline.runner import Candidate
from graphopt.rewriting.base import Pass
from graphopt.steering.leaving_out import EVEN, Bench, applied_passes, leave_out

_SECONDS = 30.0  # for all choices of a run
_TRIAL_SECONDS = 6.0  # for one
_SMALL_SECONDS = 3.0  # for one at the small size
_ALIKE = 0.03  # what a pass may gain or lose, by the whole interval, for its nodes to count instead


@dataclass(frozen=True)
class Choice:
    """What was decided of a pass.

    Attributes:
        pass_name: the pass.
        kept: whether it stays.
        reason: why, in one clause.
        nodes_with, nodes_without: of the two candidates.
        speed: of the one with the pass beside the one without; None where nothing was timed.
        operators: what the pass changes in the graph that the runtime ends with: operator, how many with it, and without.
        shapes: input -> shape, where the speed was measured.
    """

    pass_name: str
    kept: bool
    reason: str
    nodes_with: int
    nodes_without: int
    speed: Speed | None = None
    operators: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    shapes: Mapping[str, list[int]] | None = None

    def to_dict(self) -> dict[str, Any]:
        figures = {key: None if self.speed is None else getattr(self.speed, key) for key in ("ratio", "low", "high", "pairs")}
        return {
            "pass": self.pass_name, "decision": "kept" if self.kept else "undone", "reason": self.reason,
            "nodes_with": self.nodes_with, "nodes_without": self.nodes_without, **figures,
            "shapes": None if self.shapes is None else dict(self.shapes),
            "runtime_operators": {op: list(both) for op, both in self.operators.items()},
        }  # fmt: skip

    def text(self) -> str:
        """The decision in one line, without the pass's name."""
        line = f"{'kept' if self.kept else 'undone'}: {self.reason}"
        if self.speed is not None:
            line += f", {self.speed.ratio:.3f}x ({self.speed.low:.3f} to {self.speed.high:.3f})"
        if self.kept and self.nodes_with > self.nodes_without:
            line += f"; that takes {self.nodes_with - self.nodes_without:,} nodes more"
        # The runtime's own domains: what it made of patterns that it found.
        hidden = [f"{op.split('::')[-1]} {had} to {has}" for op, (has, had) in self.operators.items() if "::" in op and has < had]
        if hidden:
            line += f"; it hides patterns from the runtime's own fusions: {', '.join(hidden)}"
        return line


def choose(
    bench: Bench,
    candidate: Candidate,
    passes: Iterable[Pass],
    *,
    seconds: float = _SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Candidate, list[Choice]]:
    """Decide of each pass that is `measured` and applied anything, in turn, whether the candidate is better off without it.

    A pass that is measurably faster is kept, one that is measurably slower undone: at the usual size of the inputs, and
    at the small one where that does not tell. Where it is as good as even, within 3 %, what has fewer nodes is taken.
    Where the figures are too noisy to tell, nodes are the same, or `seconds` are over, the pass's own word counts
    (`unmeasured`). A figure that speaks against all that is taken a second time before it is believed. The passes are
    few and mostly independent: one after the other is left out of the best so far.
    """
    end = clock() + seconds
    risky = {step.name: step for step in passes if step.measured}
    choices = []
    for name in applied_passes(candidate):
        if name not in risky:
            continue
        left, default = end - clock(), risky[name].unmeasured == "keep"
        if left <= 0 and default:
            nodes = count_nodes(candidate.model.graph)
            choices.append(Choice(name, True, "no time was left to measure it", nodes, nodes))
            continue
        trial = leave_out(bench, candidate, name, min(_TRIAL_SECONDS, max(left, _TRIAL_SECONDS / 6)), hides=risky[name].hides)
        nodes_with, nodes_without = count_nodes(candidate.model.graph), count_nodes(trial.candidate.model.graph)
        speed = trial.speed
        alike = speed is None or (speed.low > 1 - _ALIKE and speed.high < 1 + _ALIKE)
        otherwise = default if nodes_with == nodes_without or not alike else nodes_with < nodes_without
        if speed is not None and (speed.faster or speed.slower) and speed.faster != otherwise:
            speed = bench.race(trial.candidate, candidate, _TRIAL_SECONDS)
        shapes, where = None if speed is None else bench.shapes(), ""
        if speed is not None and not (speed.faster or speed.slower) and bench.shapes(small=True) is not None:
            small = bench.race(trial.candidate, candidate, _SMALL_SECONDS, EVEN, small=True)
            if (small.faster or small.slower) and small.faster != otherwise:
                small = bench.race(trial.candidate, candidate, _SMALL_SECONDS, small=True)
            if small.faster or small.slower:
                speed, shapes, where = small, bench.shapes(small=True), " on small inputs"
        if trial.idle:
            kept, reason = False, f"the runtime makes no {_names(risky[name].hides)} without it either"
        elif speed is None:
            kept, reason = otherwise, "the runtime ends with the same graph with and without it"
        elif speed.faster:
            kept, reason = True, f"it is faster{where}"
        elif speed.slower:
            kept, reason = False, f"it is slower{where}"
        else:
            kept, reason = otherwise, "no difference can be measured"
        choices.append(Choice(name, kept, reason, nodes_with, nodes_without, speed, trial.operators, shapes))
        if not kept:
            candidate = trial.candidate
    return candidate, choices


def _names(operators: Iterable[str]) -> str:
    return " or ".join(sorted(op.split("::")[-1] for op in operators))
