"""Runs a pipeline over a model; replays it without what a bisection found at fault."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from graphopt.errors import CalibrationError
from graphopt.model import Model
from graphopt.pipeline.presets import Pipeline
from graphopt.rewriting.base import Pass
from graphopt.rewriting.changes import ChangeLog, Refusal
from graphopt.rewriting.context import Context, Tools


@dataclass(frozen=True)
class Hold:
    """What a run must not do. Passes are deterministic, so a replay does everything else alike.

    Attributes:
        passes: names of passes that are left out whole.
        applications: numbers of single applications, counted from 0 over the whole run, that are held back.
        limit: only applications below this number happen; None: all.
    """

    passes: frozenset[str] = frozenset()
    applications: frozenset[int] = frozenset()
    limit: int | None = None

    def allows(self, number: int) -> bool:
        """Whether application `number` may happen."""
        return number not in self.applications and (self.limit is None or number < self.limit)


@dataclass
class PassRun:
    """What one pass did in one run of the pipeline, over all rounds.

    Attributes:
        status: "kept", "no-change", "rolled-back" or "failed".
        note: why it was rolled back or failed.
        seconds: wall time.
    """

    name: str
    effect: str
    applied: int = 0
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    nodes_before: int = 0
    nodes_after: int = 0
    seconds: float = 0.0
    status: str = "no-change"
    note: str = ""


@dataclass(frozen=True)
class Application:
    """One application: its number in the run, the pass, and what it was applied to."""

    number: int
    pass_name: str
    label: str


@dataclass
class Candidate:
    """The model as rewritten, and how it came about.

    Attributes:
        model: the rewritten model.
        runs: one record a step of the pipeline, in order.
        applications: everything that was applied, in order.
        hold: what was held back.
        notes: remarks on the model.
    """

    model: Model
    runs: list[PassRun]
    applications: list[Application]
    hold: Hold
    notes: list[str]

    @property
    def changed(self) -> bool:
        """Whether any pass changed anything."""
        return bool(self.applications)


class Observer(Protocol):
    """Told of each pass as it starts and ends; for progress, timing and dumps, which are not the passes' business."""

    def before(self, step: Pass, number: int, total: int) -> None: ...
    def after(self, step: Pass, record: PassRun, model: Model) -> None: ...


class PassFailed(Exception):
    """A pass raised; the model is in an unknown state."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.name = name
        self.error = error


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside: graphs are cyclic and large, and every collection would walk all of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run_pipeline(
    load: Callable[[], Model],
    pipeline: Pipeline,
    *,
    hold: Hold | None = None,
    observers: Sequence[Observer] = (),
    tools: Tools | None = None,
) -> Candidate:
    """Run a pipeline over the model that `load` gives; a pass that raises is left out, and the run done again.

    Args:
        load: a fresh copy of the model, each time that it is called.
        pipeline: the passes.
        hold: what must not be done.
        observers: told of each pass.
        tools: what the passes may use beyond the model.

    Raises:
        CalibrationError: calibration samples are at fault; no pass is to blame for them.
    """
    hold = hold or Hold()
    failed: dict[str, str] = {}
    while True:
        kept = Hold(hold.passes | failed.keys(), hold.applications, hold.limit)
        try:
            candidate = _run(load(), pipeline, kept, observers, tools or Tools())
        except PassFailed as failure:
            failed[failure.name] = _one_line(failure.error)
            continue
        for run in candidate.runs:
            if run.name in failed:
                run.status, run.note = "failed", failed[run.name]
            elif run.name in hold.passes:
                run.status = "rolled-back"
        candidate.hold = hold
        return candidate


def _run(model: Model, pipeline: Pipeline, hold: Hold, observers: Sequence[Observer], tools: Tools) -> Candidate:
    run = _Run(model, pipeline, hold, observers, tools)
    with collector_off():
        first = 0
        for stage in pipeline.stages:
            places = range(first, first + len(stage.steps))
            first += len(stage.steps)
            for _ in range(stage.rounds):
                changed = [run.step(i) for i in places]  # all of them, whatever the first did
                if not any(changed):
                    break
                run.context.invalidate(shapes=True)  # what the round changed may have made more shapes known
    return Candidate(model, run.records, run.applications, hold, [*model.notes, *dict.fromkeys(run.context.notes)])


@dataclass(frozen=True)
class _Kind:
    """What running passes takes, for a kind of graph."""

    context: Callable[..., Any]
    count: Callable[[Any], int]
    carry_out: Callable[[Pass, Any], None]


def _kind(model: Model) -> _Kind:
    if model.kind == "torch":
        from graphopt import aten  # it imports torch

        return _Kind(aten.AtenContext, aten.count_nodes, lambda step, context: step.run_aten(context))
    from graphopt.model import count_nodes

    return _Kind(Context, count_nodes, lambda step, context: step.run(context))


class _Run:
    """One pass over the pipeline, as far as it has come."""

    def __init__(self, model: Model, pipeline: Pipeline, hold: Hold, observers: Sequence[Observer], tools: Tools) -> None:
        self.model = model
        self.steps = pipeline.steps
        self.hold = hold
        self.observers = observers
        self.records = [PassRun(step.name, step.effect.value) for step in self.steps]
        self.applications: list[Application] = []
        self.kind = _kind(model)
        self.context = self.kind.context(model.graph)
        if isinstance(self.context, Context):
            self.context.tools = tools
        self.held: list[set[Any]] = [set() for _ in self.steps]
        self.seen = [False] * len(self.steps)
        self.asked = 0
        self.nodes = self.kind.count(model.graph)

    def step(self, i: int) -> bool:
        """Run one pass; whether it changed anything."""
        step, record = self.steps[i], self.records[i]
        if not self.seen[i]:
            self.seen[i] = True
            record.nodes_before = record.nodes_after = self.nodes
        if step.name in self.hold.passes or self.model.kind not in step.kinds:
            return False
        if step.calibrates and self.hold.limit is not None and self.asked >= self.hold.limit:
            return False  # nothing that it asks for would be allowed: a bisection need not calibrate to find that out
        for observer in self.observers:
            observer.before(step, i, len(self.steps))
        base = self.asked
        log = ChangeLog(step.name, lambda number: self.hold.allows(base + number), self.held[i], base)
        started = time.perf_counter()
        self.context = self.kind.context(self.model.graph, log, self.context)
        try:
            self.kind.carry_out(step, self.context)
        except CalibrationError:
            raise
        except Exception as error:
            raise PassFailed(step.name, error) from error
        record.seconds += time.perf_counter() - started
        self.applications.extend(Application(base + number, step.name, label) for number, label in log.numbered)
        self.asked += log.asked
        if log.applied:
            record.status = "kept"
            record.applied += log.applied
            before, self.nodes = self.nodes, self.kind.count(self.model.graph)
            record.nodes_after += self.nodes - before
        record.refused = log.refusals
        record.notes = log.notes or record.notes  # what holds after the last round
        for observer in self.observers:
            observer.after(step, record, self.model)
        return bool(log.applied)


def _one_line(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
