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
from graphopt.pipeline.checkpoints import Checkpoint, Checkpoints, Place, copied, place_of
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
        corrects: as the pass says.
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
    corrects: bool = False


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
    checkpoints: Checkpoints | None = None,
) -> Candidate:
    """Run a pipeline over the model that `load` gives; a pass that raises is left out, and the run done again.

    Args:
        load: a fresh copy of the model, each time that it is called.
        pipeline: the passes.
        hold: what must not be done.
        observers: told of each pass.
        tools: what the passes may use beyond the model.
        checkpoints: of earlier runs over the same model with the same tools; what they have in common is not done again.

    Raises:
        CalibrationError: calibration samples are at fault; no pass is to blame for them.
    """
    hold = hold or Hold()
    failed: dict[str, str] = {}
    while True:
        kept = Hold(hold.passes | failed.keys(), hold.applications, hold.limit)
        try:
            candidate = _run(load, pipeline, kept, observers, tools or Tools(), checkpoints)
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


def _run(
    load: Callable[[], Model], pipeline: Pipeline, hold: Hold, observers: Sequence[Observer], tools: Tools,
    checkpoints: Checkpoints | None,
) -> Candidate:  # fmt: skip
    place = None if checkpoints is None else place_of(pipeline)
    known = None if checkpoints is None or place is None else checkpoints.find(pipeline, hold)
    run = _Run(load() if known is None else known.model, pipeline, hold, observers, tools)
    if known is not None:
        run.resume(known)
    with collector_off():
        step = 0
        for number, stage in enumerate(pipeline.stages):
            first, step = step, step + len(stage.steps)
            if known is not None and number < known.place.stage:
                continue
            for turn in range(stage.rounds):
                changed: list[bool] = []
                for i in range(first, step):
                    if turn == 0 and place is not None and i <= place.step:
                        if known is not None and i < place.step:
                            changed.append(known.changed[i - first])
                            continue
                        if known is None and i == place.step and checkpoints is not None:
                            run.pause(place, changed, checkpoints)
                    changed.append(run.step(i))  # all of them, whatever the first did
                if not any(changed):
                    break
                run.context.invalidate(shapes=True)  # what the round changed may have made more shapes known
    return Candidate(run.model, run.records, run.applications, hold, [*run.model.notes, *dict.fromkeys(run.context.notes)])


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
        self.pipeline = pipeline
        self.steps = pipeline.steps
        self.hold = hold
        self.observers = observers
        self.records = [PassRun(step.name, step.effect.value, corrects=step.corrects) for step in self.steps]
        self.applications: list[Application] = []
        self.kind = _kind(model)
        self.tools = tools
        self.context = self._context()
        self.held: list[set[Any]] = [set() for _ in self.steps]
        self.seen = [False] * len(self.steps)
        self.asked = 0
        self.nodes = self.kind.count(model.graph)

    def _context(self) -> Any:
        made = self.kind.context(self.model.graph)
        if isinstance(made, Context):
            made.tools = self.tools
        return made

    def pause(self, place: Place, changed: list[bool], checkpoints: Checkpoints) -> None:
        """Keep how far it has come, and go on with a copy of the graph, as those do that start from here."""
        repeats = self.pipeline.stages[place.stage].rounds > 1 and place.inner > 0
        if self.model.kind != "onnx" or (repeats and any(self.held)):
            return  # nodes that are held back in the next round are not those of a copy
        if self.hold.limit is not None and self.hold.limit < self.asked:
            return  # something before here did not happen for it
        before = frozenset(step.name for step in self.steps[: place.step])
        kept = checkpoints.keep(
            lambda: Checkpoint(
                self.pipeline, place, self.hold.passes & before, frozenset(n for n in self.hold.applications if n < self.asked),
                self.model, tuple(changed), tuple(map(copied, self.records)), tuple(self.applications), self.asked, tuple(self.seen),
                tuple(self.context.notes), self.nodes,
            )
        )  # fmt: skip
        if kept is not None:
            self.resume(kept)

    def resume(self, known: Checkpoint) -> None:
        """Go on from where another run was."""
        self.model = known.fresh()
        self.records = [copied(record) for record in known.records]
        self.applications, self.asked = list(known.made), known.asked
        self.seen, self.nodes = list(known.seen), known.nodes
        self.context = self._context()
        self.context.notes.extend(known.notes)

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
