"""What a run works with: candidates of the model, what verification says of them, and how fast they are."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import runtime
from graphopt.errors import GraphoptError, InputError, OutputError
from graphopt.measurement.target import detect
from graphopt.pipeline.checkpoints import Checkpoints
from graphopt.quality import Quality
from graphopt.rewriting.base import Effect
from graphopt.rewriting.context import Tools
from graphopt.settings import Settings

if TYPE_CHECKING:
    from graphopt.measurement import FinalGraph, Latency, Speed
    from graphopt.metric import Metric
    from graphopt.model import Model
    from graphopt.pipeline.presets import Pipeline
    from graphopt.pipeline.runner import Candidate
    from graphopt.reporting.progress import Progress
    from graphopt.request import Request
    from graphopt.verification import Sample
    from graphopt.verification.original import Original

_SMALL = 256 * 2**20  # bytes; candidates of models up to this size are tried out in the system's temporary folder


class Stages:
    """The stages of a run: how long each took, and what is shown of them."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self._shown: Any = None

    @contextlib.contextmanager
    def stage(self, name: str, label: str) -> Iterator[Any]:
        """Time a stage; what an inner stage takes does not count for the outer one."""
        started, inner = time.perf_counter(), sum(self.seconds.values())
        outer = self._shown
        try:
            with self.progress.stage(label) as stage:
                self._shown = outer or stage  # an inner stage is shown as the outer one
                yield stage
        finally:
            self._shown = outer
            own = time.perf_counter() - started - (sum(self.seconds.values()) - inner)
            self.seconds[name] = self.seconds.get(name, 0.0) + own

    @contextlib.contextmanager
    def within(self, label: str) -> Iterator[Any]:
        """Something long inside the stage at hand: it is what is shown until it is over."""
        stage = self._shown
        if stage is None:
            with self.progress.stage(label) as stage:
                yield stage
            return
        name, done, total = stage.name, stage.done, stage.total
        stage.describe(label)
        try:
            yield stage
        finally:
            stage.describe(name)
            stage(done)
            stage.total = total

    def count(self, done: float, total: float) -> None:
        """Say how much of the stage at hand is done."""
        if self._shown is not None:
            self._shown(done, total)

    def tell(self, text: str) -> None:
        """Say what the stage at hand is about."""
        if self._shown is not None:
            self._shown.describe(text)


class Workbench:
    """The candidates of one run.

    Attributes:
        samples: inputs to verify and time on; empty until they are found.
        tools: what passes may use beyond the model.
        reference: the original as verification sees it.
        floor: the weakest effect that is claimed of any candidate.
        compare_seconds: what the last comparison took.
        folder: where candidates are written.
    """

    def __init__(self, request: Request, pipeline: Pipeline, loaded: Model, stages: Stages, folder: Path) -> None:
        self.request = request
        self.pipeline = pipeline
        self.loaded = loaded
        self.stages = stages
        self.folder = folder
        self.samples: list[Sample] = []
        self.tools = Tools(target=detect(request.provider, request.threads))
        self.reference: Original | None = None
        self.floor = Effect.EXACT
        self.compare_seconds = 0.0
        self._first: Model | None = loaded
        self._trials = 0
        self._metric: Metric | None = None
        self._metric_before: float | None = None
        self._checkpoints = Checkpoints()
        self._graphs: dict[tuple[bytes, Any], FinalGraph | None] = {}

    # --- candidates ---------------------------------------------------------------------------------------------

    def build(self, hold: Any = None, pipeline: Pipeline | None = None) -> Candidate:
        """A candidate: a pipeline, the run's own without one, over a fresh copy of the model, with something held back.

        What comes before the first lossy pass is done once for all candidates that are alike so far.
        """
        from graphopt.pipeline.runner import run_pipeline

        with self.stages.stage("passes", "running passes") as stage:
            return run_pipeline(
                self._fresh, pipeline or self.pipeline, hold=hold, observers=[Show(stage)], tools=self.tools,
                checkpoints=self._checkpoints,
            )  # fmt: skip

    def _fresh(self) -> Model:
        first, self._first = self._first, None
        return first if first is not None else self.loaded.fresh()

    @contextlib.contextmanager
    def file(self, candidate: Candidate) -> Iterator[Path]:
        """The candidate as a file, as it would be shipped."""
        path = self.keep(candidate)
        try:
            yield path
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)

    def keep(self, candidate: Candidate) -> Path:
        """The candidate as a file, in a folder of its own that stays until the run is over."""
        from graphopt.formats import save_model

        self._trials += 1
        path = self.folder / f"trial{self._trials}" / self.request.destination.name
        path.parent.mkdir()
        save_model(candidate.model, path)
        return path

    # --- what it computes ---------------------------------------------------------------------------------------

    def compare(
        self, candidate: Candidate, *, final: bool = True, settings: Settings | None = None, at_least: Effect = Effect.EXACT
    ) -> tuple[str | None, dict[str, Any]]:
        """What is wrong with the candidate (None: nothing), and the verification; `final`: with what was exercised.

        Where there is a metric and no budget of the outputs, the metric judges a lossy candidate, not the distance of the outputs.
        `over_budget` in the verification: that is all that is wrong.
        """
        from graphopt.verification import verify

        request, started = self.request, time.perf_counter()
        metric_judges = request.metric_judges
        effect = max([at_least, self.floor, *(Effect(r.effect) for r in candidate.runs if r.applied)], key=lambda e: e.strength)
        with self.file(candidate) as path:
            found = verify(
                request.model, path, self.samples, effect=effect.value, tolerance=request.tolerance,
                budget=math.inf if metric_judges else request.accepted, threads=request.threads,
                provider=request.provider, reference=self.reference, coverage=final, settings=settings,
            )  # fmt: skip
        self.compare_seconds = time.perf_counter() - started
        if found.verdict != "different" and metric_judges and effect is Effect.LOSSY:
            quality = self.quality(candidate)
            assert quality is not None
            reason = quality["fault"]
            if not reason and not quality["loss"] <= request.accepted.limit:
                fall = f"{quality['before']:.6g} to {quality['after']:.6g}"
                reason = f"{quality['metric']} falls from {fall}, beyond the budget of {request.accepted}"
            if reason:
                return reason, found.to_dict() | {"over_budget": True}
        return found.reason, found.to_dict()

    def quality(self, candidate: Candidate) -> dict[str, Any] | None:
        """The user's metric of the original and of the candidate; None where there is none.

        Raises:
            InputError: it raises on the original, or gives no finite number. On the candidate that is a `fault` of this.
        """
        if self.request.metric is None:
            return None
        with self.file(candidate) as path:
            return self._metric_of(path)

    def _metric_of(self, path: Path) -> dict[str, Any]:
        from graphopt.metric import load_metric, measure_metric, relative_loss

        request = self.request
        assert request.metric is not None
        if self._metric is None:  # once: what it reads when it is imported need not be read for every candidate
            self._metric = load_metric(request.metric)
        metric, after, fault = self._metric, None, ""
        if self._metric_before is None:
            self._metric_before = measure_metric(metric, request.model, threads=request.threads, provider=request.provider)
        try:
            after = measure_metric(metric, path, threads=request.threads, provider=request.provider)
        except InputError as error:
            fault = str(error).replace(f" on {path}", " on the result")
        return {
            "metric": metric.name, "before": self._metric_before, "after": after,
            "loss": None if after is None else relative_loss(self._metric_before, after),
            "budget": request.accepted.limit if request.metric_judges and request.budget is not None else None, "fault": fault,
        }  # fmt: skip

    def figures(self, candidate: Candidate, *, most: int | None = None, metric: bool = True, both: bool = False) -> Quality:
        """How far the candidate's outputs are from the original's, as it would be served; on at most `most` samples.

        `metric`: with the user's own measure, where there is one. `both`: with the runtime's optimizations off, too, as
        verification looks at it: the worse of the two.
        """
        from graphopt.quality import measure

        request = self.request
        assert self.reference is not None
        with self.file(candidate) as path:
            try:
                found = Quality()
                for optimize in (False, True) if both else (True,):
                    session = runtime.session(path, optimize=optimize, threads=request.threads, provider=request.provider)
                    found = found.worse(measure(self.reference, self.samples[:most], functools.partial(runtime.run, session)))
            except GraphoptError as error:
                return Quality(math.inf, math.inf, 0.0, 0.0, fault=str(error).replace(str(path), "the result"))
            if not metric or request.metric is None or found.fault:
                return found
            of = self._metric_of(path)
        return replace(found, metric=of["after"], loss=of["loss"], fault=of["fault"])

    # --- how fast it is -----------------------------------------------------------------------------------------

    def speed_of(self, candidate: Candidate, seconds: float, *, small: bool = False) -> Speed:
        """The measured speed of a candidate beside the original."""
        with self.file(candidate) as path:
            return self._timed(self.request.model, path, seconds, small=small)

    def race(self, a: Candidate, b: Candidate, seconds: float, decide: float | None = None, *, small: bool = False) -> Speed:
        """The measured speed of candidate b beside candidate a."""
        with self.file(a) as first, self.file(b) as second:
            return self._timed(first, second, seconds, decide, small=small)

    def race_all(self, candidates: Sequence[Candidate], seconds: float) -> list[Speed]:
        """The measured speed of all candidates but the first, each beside the first."""
        from graphopt.measurement import race
        from graphopt.measurement.timing import timed_session

        request = self.request
        on = {"threads": request.threads, "provider": request.provider}
        with contextlib.ExitStack() as stack:
            paths = [stack.enter_context(self.file(candidate)) for candidate in candidates]
            contenders = [lambda path=path: timed_session(path, self.feeds(), **on) for path in paths]
            return race(contenders, **on, max_seconds=seconds, min_seconds=min(1.0, seconds / 5))

    def feeds(self) -> Mapping[str, Any]:
        """What speed is measured on: inputs of the usual size."""
        return self._timing()[0].feeds

    def shapes(self, *, small: bool = False) -> dict[str, list[int]] | None:
        """The shapes that timing is done on: of the usual size, or of the `small` one; None where there is only one size."""
        timing = self._timing()
        return timing[small].shapes() if len(timing) > small else None

    def graph_of(self, candidate: Candidate) -> FinalGraph | None:
        """The graph that the runtime ends with; None where there is no telling."""
        with self.file(candidate) as path:
            return self.graph_with(path, None)

    def graph_with(self, path: Path, settings: Settings | None) -> FinalGraph | None:
        """The same of a file, under settings; worked out once for a file of the same bytes."""
        from graphopt.measurement import final_graph

        key = _digest(path), None if settings is None else (settings.level, settings.disabled)
        if key not in self._graphs:
            self._graphs[key] = final_graph(path, threads=self.request.threads, provider=self.request.provider, settings=settings)
        return self._graphs[key]

    def latency(self, path: Path) -> Latency:
        """How long a run and a session take, roughly."""
        from graphopt.measurement import bench

        return bench(path, self._timing()[0].feeds, threads=self.request.threads, provider=self.request.provider, max_seconds=0.3)

    def race_settings(self, path: Path, a: Settings, b: Settings, seconds: float, decide: float | None = None) -> Speed:
        """The measured speed of a model under settings b beside itself under settings a."""
        return self._timed(path, path, seconds, decide, (a, b))

    def optimizers(self, path: Path) -> tuple[str, ...]:
        """The runtime's own optimizers that change a model."""
        from graphopt.measurement import active_optimizers

        return active_optimizers(path, threads=self.request.threads, provider=self.request.provider)

    def threads_tell(self) -> bool:
        """Whether timings with other numbers of threads mean anything: on the CPU, and nothing else loads the machine."""
        if runtime.resolve_provider(self.request.provider) != runtime.CPU:
            return False
        # This process loads every core at the most.
        return not hasattr(os, "getloadavg") or os.getloadavg()[0] <= runtime.usable_cores() + 1

    def tell(self, text: str) -> None:
        """Say what is being tried."""
        self.stages.tell(text)

    def count(self, done: float, total: float) -> None:
        """Say how far it has come, of how much."""
        self.stages.count(done, total)

    def _timing(self) -> list[Sample]:
        from graphopt.verification import for_timing

        return for_timing(self.samples)

    def _timed(
        self, a: Path, b: Path, seconds: float, decide: float | None = None, settings: Any = (None, None), *, small: bool = False
    ) -> Speed:
        from graphopt.measurement import compare

        request = self.request
        return compare(
            a, b, self._timing()[small].feeds, threads=request.threads, provider=request.provider, max_seconds=seconds,
            min_seconds=min(1.0, seconds / 5), decide=decide, settings=settings,
        )  # fmt: skip


class Show:
    """Tells the progress bar which pass runs."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage

    def before(self, step: Any, number: int, total: int) -> None:
        self.stage.describe(step.name)
        self.stage(number, total)

    def after(self, step: Any, record: Any, model: Any) -> None:
        """Nothing to show."""


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextlib.contextmanager
def work_folder(size: int | None, beside: Path) -> Iterator[Path]:
    """A folder for candidates: the system's temporary one, for large models one on the disk that the result goes to."""
    parent = beside if size is not None and size > _SMALL else Path(tempfile.gettempdir())
    try:
        folder = tempfile.mkdtemp(prefix=".graphopt-", dir=parent)
    except OSError as error:
        raise OutputError(f"{parent}: no temporary folder can be made there: {error.strerror}") from None
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
