"""What a run on a torch program works with: candidates, what verification says of them, and how fast they are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.pipeline.runner import Candidate, run_pipeline
from graphopt.programs.calling import Caller, raised
from graphopt.programs.captured import Captured
from graphopt.programs.measure import race_modules
from graphopt.programs.verify import EagerModule, same_bits
from graphopt.rewriting.base import Effect
from graphopt.verification import Sample, verify
from graphopt.workbench import Show, Stages

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from graphopt.measurement import FinalGraph, Speed
    from graphopt.model import Model
    from graphopt.pipeline.presets import Pipeline
    from graphopt.request import Request


class ProgramBench:
    """The candidates of one run on a captured program; the same questions as `graphopt.workbench.Workbench` answers.

    Attributes:
        samples: inputs to verify and time on; empty until they are found.
        reference: the eager module as verification sees it.
        floor: the weakest effect that is claimed of any candidate: capture itself may round.
    """

    def __init__(self, request: Request, pipeline: Pipeline, captured: Captured, stages: Stages) -> None:
        self.request = request
        self.pipeline = pipeline
        self.captured = captured
        self.stages = stages
        self.samples: list[Sample] = []
        self.reference = EagerModule(captured, threads=request.threads, seed=request.seed)
        self.floor = Effect.EXACT
        self.compare_seconds = 0.0
        self._last: tuple[Candidate, ExportedProgram, torch.nn.Module] | None = None

    def build(self, hold: Any = None, pipeline: Pipeline | None = None) -> Candidate:
        """A candidate: a pipeline, the run's own without one, over the program, with something held back."""
        with self.stages.stage("passes", "running passes") as stage:
            return run_pipeline(self._fresh, pipeline or self.pipeline, hold=hold, observers=[Show(stage)])

    def _fresh(self) -> Model:
        from graphopt.aten import Program
        from graphopt.model import Model

        return Model(Program(self.captured.program), kind="torch")

    def program(self, candidate: Candidate) -> ExportedProgram:
        """The candidate as a program; the captured one itself where nothing was applied."""
        return self._made(candidate)[0]

    def module(self, candidate: Candidate) -> torch.nn.Module:
        """The candidate as a module."""
        return self._made(candidate)[1]

    def _made(self, candidate: Candidate) -> tuple[ExportedProgram, torch.nn.Module]:
        if self._last is None or self._last[0] is not candidate:
            program = candidate.model.graph.export() if candidate.changed else self.captured.program
            self._last = candidate, program, self._module_of(program)
        return self._last[1], self._last[2]

    @staticmethod
    def _module_of(program: ExportedProgram) -> torch.nn.Module:
        from graphopt.programs.module import as_module

        return as_module(program)

    # --- what it computes ---------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Find out whether capture rounds, on the samples. A program that does not run shows when it is compared."""
        try:
            caller = Caller(self.captured, self._module_of(self.captured.program), threads=self.request.threads)
            exact = same_bits(self.reference, caller, self.samples)
        except GraphoptError:
            exact = True
        self.floor = Effect.EXACT if exact else Effect.ROUNDING

    def compare(
        self, candidate: Candidate, *, final: bool = True, settings: Any = None, at_least: Effect = Effect.EXACT
    ) -> tuple[str | None, dict[str, Any]]:
        """What is wrong with the candidate (None: nothing), and the verification; `final`: with what was exercised."""
        request, started = self.request, time.perf_counter()
        effect = strongest(candidate, at_least, self.floor)
        try:
            runnable: Any = Caller(self.captured, self.module(candidate), threads=request.threads)
        except Exception as error:  # torch's checks of a program, which raise their own kinds
            runnable = _Broken(self.reference.output_names, f"it is no program that torch takes: {raised(error)}")
        found = verify(
            None, runnable, self.samples, effect=effect.value, tolerance=request.tolerance, budget=request.accepted,
            reference=self.reference, coverage=final,
        )  # fmt: skip
        self.compare_seconds = time.perf_counter() - started
        return found.reason, found.to_dict()

    # --- how fast it is -----------------------------------------------------------------------------------------

    def speed_of(self, candidate: Candidate, seconds: float, *, small: bool = False) -> Speed:
        """The measured speed of a candidate beside the eager module, on the example inputs."""
        return self._raced(self.captured.reference, self.module(candidate), seconds, None)

    def race(self, a: Candidate, b: Candidate, seconds: float, decide: float | None = None, *, small: bool = False) -> Speed:
        """The measured speed of candidate b beside candidate a."""
        first = self.module(a)
        return self._raced(first, self.module(b), seconds, decide)

    def shapes(self, *, small: bool = False) -> dict[str, list[int]] | None:
        """The shapes that timing is done on: those of the example inputs are the usual ones, and there are no others."""
        return None if small else self.samples[0].shapes()

    def graph_of(self, candidate: Candidate) -> FinalGraph | None:
        """No graph is known to be what torch runs in the end but the candidate's own: so there is no telling."""
        return None

    def tell(self, text: str) -> None:
        """Say what is being tried."""
        self.stages.tell(text)

    def _raced(self, a: torch.nn.Module, b: torch.nn.Module, seconds: float, decide: float | None) -> Speed:
        threads = self.request.threads
        return race_modules(self.captured, (a, b), self.samples[0].feeds, threads=threads, seconds=seconds, decide=decide)


class _Broken:
    """A candidate that cannot be made to run."""

    def __init__(self, names: list[str], why: str) -> None:
        self.output_names, self.why = names, why

    def run(self, feeds: Any) -> dict[str, Any]:
        raise GraphoptError(self.why)


def strongest(candidate: Candidate, *others: Effect) -> Effect:
    """The strongest effect among the passes that changed a candidate, and others."""
    return max([*others, *(Effect(r.effect) for r in candidate.runs if r.applied)], key=lambda e: e.strength)
