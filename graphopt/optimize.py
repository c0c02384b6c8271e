"""One run from a model file to an optimized one: load, pipeline, verify, measure, save, report."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, OutputError
from graphopt.request import Request, check, load, plan
from graphopt.rewriting.base import Effect

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.pipeline.bisect import Culprit
    from graphopt.pipeline.presets import Pipeline
    from graphopt.pipeline.runner import Candidate
    from graphopt.reporting import Report
    from graphopt.reporting.progress import Progress

_SMALL = 256 * 2**20  # bytes; candidates of models up to this size are tried out in the system's temporary folder


@dataclass
class Result:
    """What came of a run.

    Attributes:
        report: what the terminal and the JSON show.
        exit_code: 0: done and verified; 1: done, but not verified, or not within what was asked.
        candidate: the model as written and how it came about.
    """

    report: Report
    exit_code: int
    candidate: Candidate


def optimize(request: Request, *, progress: Progress | None = None) -> Result:
    """Carry a request out; the input is left alone unless it says `in_place`.

    Raises:
        GraphoptError: the request or the input is at fault; nothing was written.
    """
    from graphopt.reporting.progress import Progress

    _, pipeline = plan(request)
    check(request)
    return _Run(request, pipeline, progress or Progress(quiet=True)).carry_out()


class _Run:
    """One request on its way through the stages."""

    def __init__(self, request: Request, pipeline: Pipeline, progress: Progress) -> None:
        self.request = request
        self.pipeline = pipeline
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.culprits: list[tuple[str, Culprit]] = []
        self.verification: dict[str, Any] | None = None
        self.samples: list[Any] = []
        self.reference: Any = None
        self.work: Path | None = None
        self._first: Model | None = None
        self._trials = 0

    def carry_out(self) -> Result:
        from graphopt.reporting.describe import describe, describe_interface

        request = self.request
        with self._stage("load", f"loading {request.model.name}"):
            self._first = self.loaded = load(request)
            interface = describe_interface(self.loaded.graph, request.model)
            before = describe(self.loaded.graph, request.model)
        with contextlib.ExitStack() as stack:
            self.work = Path(stack.enter_context(_work_folder(before["bytes"], request.destination.parent)))
            if request.verify != "off":
                with self._stage("verify", "finding samples"):
                    self._find_samples()
            candidate = self.build()
            if request.verify != "off" and self.samples:
                with self._stage("verify", "verifying"):
                    candidate = self._verified(candidate)
            quality = self._quality(candidate)
            speed = None
            if request.bench:
                with self._stage("bench", "measuring"):
                    candidate, speed = self._never_slower(candidate)
            if speed is not None and quality is not None and candidate.hold.passes:
                quality = self._quality(candidate)
            with self._stage("save", f"saving {request.destination.name}"):
                self._save(candidate, request.destination, in_place=request.in_place)
        after = describe(candidate.model.graph, request.destination)
        report = self._report(candidate, interface, before, after, speed, quality)
        return Result(report, self._exit_code(quality), candidate)

    # --- building -----------------------------------------------------------------------------------------------

    def _fresh(self) -> Model:
        first, self._first = self._first, None
        return first if first is not None else self.loaded.fresh()

    def build(self, hold: Any = None) -> Candidate:
        """A candidate: the pipeline run over a fresh copy of the model, with something held back."""
        from graphopt.pipeline.runner import run_pipeline

        with self._stage("passes", "running passes") as stage:
            return run_pipeline(self._fresh, self.pipeline, hold=hold, observers=[_Show(stage)])

    def _trial_file(self, candidate: Candidate) -> Path:
        """The candidate as a file, as it would be shipped."""
        assert self.work is not None
        self._trials += 1
        folder = self.work / f"trial{self._trials}"
        folder.mkdir()
        self._save(candidate, folder / self.request.destination.name)
        return folder / self.request.destination.name

    def _save(self, candidate: Candidate, path: Path, *, in_place: bool = False) -> None:
        from graphopt.formats import save_model

        save_model(candidate.model, path, in_place=in_place)

    # --- verification -------------------------------------------------------------------------------------------

    def _find_samples(self) -> None:
        from graphopt.verification import Reference, load_samples, synthesize

        request = self.request
        try:
            self.reference = Reference(request.model, threads=request.threads, provider=request.provider, seed=request.seed)
            if request.samples is not None:
                self.samples = load_samples(request.samples, self.loaded.graph)
                self.reference.outputs(self.samples[0])
                return
            found = synthesize(self.loaded.graph, self.reference.run, seed=request.seed, shapes=request.shapes or None)
        except GraphoptError as error:
            if request.samples is not None:
                raise
            self._unverified(str(error))
            return
        self.warnings.extend(found.warnings)
        self.samples = found.samples
        if found.failure:
            self._unverified(found.failure)

    def _unverified(self, why: str) -> None:
        self.verification = {"verdict": "unverified", "samples": 0, "sizes": [], "outputs": [], "notes": [why]}
        self.warnings.append(f"not verified: {why}")

    def _compare(self, candidate: Candidate, *, final: bool = True) -> tuple[str | None, dict[str, Any]]:
        """What is wrong with the candidate (None: nothing), and the verification; `final`: with what was exercised."""
        from graphopt.verification import verify

        effect = max((Effect(r.effect) for r in candidate.runs if r.applied), key=lambda e: e.strength, default=Effect.EXACT)
        path = self._trial_file(candidate)
        try:
            found = verify(
                self.request.model, path, self.samples, effect=effect.value, tolerance=self.request.tolerance,
                budget=self.request.budget if self.request.metric is None else None, threads=self.request.threads,
                provider=self.request.provider, reference=self.reference, coverage=final,
            )
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)
        wrong = [f"output {o.name!r}: {o.reason}" for o in found.outputs if not o.ok]
        reason = "; ".join(wrong) or "; ".join(found.notes) or "the outputs differ"
        return (reason if found.verdict == "different" else None), found.to_dict()

    def _verified(self, candidate: Candidate) -> Candidate:
        """The candidate if it verifies, else the best one without what made it differ."""
        if self.request.verify == "each":
            candidate = self._verified_step_by_step(candidate)
        reason, self.verification = self._compare(candidate)
        if reason is None:
            return candidate
        return self._without_culprits(candidate, reason)

    def _verified_step_by_step(self, candidate: Candidate) -> Candidate:
        """Compare after every pass that changed something, in order; the first that differs is where bisection looks."""
        tested = 0
        while True:
            ends = _pass_ends(candidate)
            bad = None
            for end in ends[tested:-1]:
                prefix = self.build(replace(candidate.hold, limit=end))
                reason, _ = self._compare(prefix, final=False)
                if reason is not None:
                    bad = prefix, reason
                    break
                tested += 1
            if bad is None:
                return candidate
            held = self._without_culprits(*bad).hold
            candidate = self.build(replace(held, limit=None))

    def _without_culprits(self, candidate: Candidate, reason: str) -> Candidate:
        from graphopt.pipeline.bisect import without_culprits

        def test(trial: Candidate) -> str | None:
            return self._compare(trial, final=False)[0]

        search = without_culprits(self.build, test, candidate, reason)
        _, self.verification = self._compare(search.candidate)
        for culprit in search.culprits:
            self.culprits.append(("different", culprit))
            if culprit.pass_name == "(none)":
                self.warnings.append(f"the model as loaded and saved, with no pass applied, already differs: {culprit.reason}")
            else:
                where = f" at {culprit.label}" if culprit.label else ""
                self.warnings.append(f"{culprit.pass_name}{where} was rolled back: {culprit.reason}")
        self._reproducers(search.culprits, candidate)
        return search.candidate

    def _reproducers(self, culprits: list[Culprit], failing: Candidate) -> None:
        from graphopt.reproducer import write_reproducer

        for culprit in culprits:
            if culprit.label is None:
                continue
            folder = write_reproducer(
                culprit, failing, self.build, self.samples, self.request.destination, threads=self.request.threads
            )
            if folder is not None:
                self.notes.append(f"a reproducer of the fault of {culprit.pass_name} is in {folder}")

    # --- speed --------------------------------------------------------------------------------------------------

    def _never_slower(self, candidate: Candidate) -> tuple[Candidate, dict[str, Any] | None]:
        """The candidate and its speed, or one without the passes that made it slower beyond the noise."""
        from graphopt.neverslower import without_slowdown

        if not candidate.changed:
            self.notes.append("no pass changed the model, so there is no speed to compare")
            return candidate, None
        if not self.samples:
            self.notes.append("speed was not measured: there are no samples to run the model on")
            return candidate, None
        found = without_slowdown(self, candidate)
        for culprit in found.culprits:
            self.culprits.append(("slower", culprit))
            self.warnings.append(f"{culprit.pass_name} was rolled back: {culprit.reason}")
        if found.candidate is not candidate and self.request.verify != "off":
            reason, self.verification = self._compare(found.candidate)
            if reason is not None:  # leaving a pass out can only expose a fault that another one hid
                return self._without_culprits(found.candidate, reason), None
        return found.candidate, found.speed

    def speed_of(self, candidate: Candidate, seconds: float) -> Any:
        """The measured speed of a candidate beside the original, on the first sample."""
        from graphopt.measurement import compare

        path = self._trial_file(candidate)
        try:
            return compare(
                self.request.model, path, self.samples[0].feeds, threads=self.request.threads, provider=self.request.provider,
                max_seconds=seconds,
            )
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)

    # --- quality and report -------------------------------------------------------------------------------------

    def _quality(self, candidate: Candidate) -> dict[str, Any] | None:
        from graphopt.metric import load_metric, measure_metric

        if self.request.metric is None:
            return None
        metric = load_metric(self.request.metric)
        path = self._trial_file(candidate)
        try:
            before, after = (
                measure_metric(metric, p, threads=self.request.threads, provider=self.request.provider) for p in (self.request.model, path)
            )
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)
        loss = (before - after) / abs(before) if before else before - after
        return {"metric": metric.name, "before": before, "after": after, "loss": loss, "budget": self.request.budget}

    def _exit_code(self, quality: dict[str, Any] | None) -> int:
        if self.request.verify != "off" and (self.verification is None or self.verification["verdict"] in ("unverified", "different")):
            return 1
        over = quality is not None and quality["budget"] is not None and quality["loss"] > quality["budget"]
        return 1 if over else 0

    def _report(self, candidate: Candidate, interface, before, after, speed, quality) -> Report:
        from graphopt.measurement.target import detect
        from graphopt.reporting import PassRecord, Refusal, Report
        from graphopt.rewriting.changes import origin

        rolled = {c.pass_name: (kind, c) for kind, c in self.culprits}
        records = []
        for run in candidate.runs:
            note = run.note or "; ".join(run.notes)
            if run.name in rolled and not run.note:
                kind, culprit = rolled[run.name]
                where = f" at {culprit.label}" if culprit.label else ""
                note = f"rolled back{where} ({kind}): {culprit.reason}"
            refused = [Refusal(r.node, r.reason) for r in run.refused]
            records.append(
                PassRecord(run.name, run.effect, run.applied, refused, run.nodes_before, run.nodes_after, run.seconds, run.status, note)
            )
        provenance = [
            {"node": node.name, "from": list(names), "passes": list(passes)}
            for node in candidate.model.graph.graph.all_nodes()
            for names, passes in (origin(node),)
            if passes
        ]
        return Report(
            model=interface,
            target=detect(self.request.provider, self.request.threads).to_dict(),
            before=before,
            after=after,
            passes=records,
            output=str(self.request.destination),
            verification=self.verification,
            speed=speed,
            quality=quality,
            seconds=self.seconds,
            notes=[*candidate.notes, *self.notes],
            warnings=self.warnings,
            extra={"preset": self.pipeline.name, "provenance": provenance},
        )

    @contextlib.contextmanager
    def _stage(self, name: str, label: str) -> Iterator[Any]:
        """Time a stage; what an inner stage takes does not count for the outer one."""
        started, inner = time.perf_counter(), sum(self.seconds.values())
        try:
            with self.progress.stage(label) as stage:
                yield stage
        finally:
            own = time.perf_counter() - started - (sum(self.seconds.values()) - inner)
            self.seconds[name] = self.seconds.get(name, 0.0) + own


class _Show:
    """Tells the progress bar which pass runs."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage

    def before(self, step: Any, number: int, total: int) -> None:
        self.stage.describe(step.name)
        self.stage(number, total)

    def after(self, step: Any, record: Any, model: Any) -> None:
        """Nothing to show."""


def _pass_ends(candidate: Candidate) -> list[int]:
    """For each stretch of applications of one pass, the number after its last."""
    ends: list[int] = []
    last = None
    for application in candidate.applications:
        if application.pass_name == last:
            ends[-1] = application.number + 1
        else:
            ends.append(application.number + 1)
        last = application.pass_name
    return ends


@contextlib.contextmanager
def _work_folder(size: int | None, beside: Path) -> Iterator[str]:
    """A folder for candidates: the system's temporary one, for large models one on the disk that the result goes to."""
    parent = beside if size is not None and size > _SMALL else Path(tempfile.gettempdir())
    try:
        folder = tempfile.mkdtemp(prefix=".graphopt-", dir=parent)
    except OSError as error:
        raise OutputError(f"{parent}: no temporary folder can be made there: {error.strerror}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
