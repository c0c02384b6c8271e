"""Where a run of a pipeline had come to before its first lossy pass, so that replays need not begin at the beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphopt.rewriting.base import Effect

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.model import Model
    from graphopt.pipeline.presets import Pipeline
    from graphopt.pipeline.runner import Application, Hold, PassRun

_MOST = 3  # that are kept; the graph alone, tensors are shared


@dataclass(frozen=True)
class Place:
    """Where in a pipeline: the stage, the pass of it by its number in the stage, and by its number in the pipeline."""

    stage: int
    inner: int
    step: int


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run before the pass at `place`, in the first round of its stage.

    Attributes:
        pipeline: that it belongs to.
        place: where it is.
        passes, applications: what was held back so far.
        model: the graph as it was; never changed.
        changed: what the passes before it in the same round said of themselves.
        records, made, asked, seen, notes, nodes: as the runner keeps them.
    """

    pipeline: Pipeline
    place: Place
    passes: frozenset[str]
    applications: frozenset[int]
    model: Model
    changed: tuple[bool, ...]
    records: tuple[PassRun, ...]
    made: tuple[Application, ...]
    asked: int
    seen: tuple[bool, ...]
    notes: tuple[str, ...]
    nodes: int

    def serves(self, pipeline: Pipeline, hold: Hold) -> bool:
        """Whether a run with something held back comes by here."""
        if self.pipeline != pipeline or (hold.limit is not None and hold.limit < self.asked):
            return False
        before = {step.name for step in pipeline.steps[: self.place.step]}
        return hold.passes & before == self.passes and self.applications == {n for n in hold.applications if n < self.asked}

    def fresh(self) -> Model:
        """A copy of the graph to go on with; tensors are shared."""
        return replace(self.model, graph=_clone(self.model.graph), notes=list(self.model.notes))


def copied(record: PassRun) -> PassRun:
    """A record of its own."""
    return replace(record, refused=list(record.refused), notes=list(record.notes))


def _clone(graph: ir.Model) -> ir.Model:
    made = graph.clone()
    made.meta.update(graph.meta)
    return made


class Checkpoints:
    """Those of the latest runs."""

    def __init__(self) -> None:
        self._kept: list[Checkpoint] = []

    def find(self, pipeline: Pipeline, hold: Hold) -> Checkpoint | None:
        """The one that a run can start from."""
        return next((c for c in self._kept if c.serves(pipeline, hold)), None)

    def keep(self, make: Callable[[], Checkpoint]) -> Checkpoint | None:
        """Keep the state that `make` gives; None where its graph cannot be copied."""
        try:
            made = make()
            made.fresh()
        except Exception:  # onnx_ir raises its own kinds, on graphs that are not sorted for instance: they are run whole, then
            return None
        self._kept = [made, *self._kept[: _MOST - 1]]
        return made


def place_of(pipeline: Pipeline) -> Place | None:
    """Before which pass a pipeline can be resumed: the first lossy one, where there are passes before it; None: nowhere."""
    step = 0
    for number, stage in enumerate(pipeline.stages):
        for inner, one in enumerate(stage.steps):
            if one.effect is Effect.LOSSY:
                return Place(number, inner, step) if step else None
            step += 1
    return None
