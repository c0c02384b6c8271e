"""Verification of torch programs: the eager module is the original, whatever is made of it the candidate."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.programs.calling import Caller
from graphopt.programs.captured import Captured
from graphopt.programs.facts import independent, ranges
from graphopt.verification.coverage import Coverage
from graphopt.verification.metrics import eps_of, is_float, leaves, wide
from graphopt.verification.original import Original, Way
from graphopt.verification.perturb import COPY_LIMIT
from graphopt.verification.samples import Sample

if TYPE_CHECKING:
    import torch


class EagerModule(Original):
    """The module that was captured, as Python runs it; of a saved program, the program as it was.

    Its own noise is what one rounding of its inputs (of its weights, where it takes only integers) moves, and how far it
    is from itself in double precision.
    """

    def __init__(self, captured: Captured, *, threads: int = 0, seed: int = 0, state: bool = True) -> None:
        """state: whether what a call changes is compared too; an ONNX model has none."""
        super().__init__(seed=seed)
        self.captured = captured
        self.threads, self.state = threads, state
        self.caller = Caller(captured, captured.reference, threads=threads, state=state)
        self.output_names = list(self.caller.output_names)
        self._others: dict[Way, Caller | None] = {}
        self._coverage: tuple[tuple[int, ...], Coverage] | None = None
        self.eps = _coarsest(captured)
        self._know(captured)

    def _know(self, captured: Captured) -> None:
        """Ranges and dependence of the outputs, by name; both answers of one that changes state."""
        program = captured.program
        signature = program.graph_signature
        results = [i for i, spec in enumerate(signature.output_specs) if spec.kind.name == "USER_OUTPUT"]
        user = [i for i, name in zip(results, signature.user_outputs, strict=True) if isinstance(name, str)]
        bounds, still = ranges(program), independent(program)
        for name, place in zip(captured.outputs, user, strict=True):
            for each in (name, f"{name} (second call)"):
                if bounds[place] is not None:
                    self.ranges[each] = bounds[place]
                if still[place] and not self.caller.stateful:
                    self.independent.add(each)
        changed = {spec.target: still[i] for i, spec in enumerate(signature.output_specs) if spec.kind.name == "BUFFER_MUTATION"}
        for name, same in changed.items():
            if same:
                self.independent |= {f"buffer {name}", f"buffer {name} (second call)"}

    def run_as(self, way: Way, feeds: Mapping[str, Any]) -> dict[str, Any]:
        if way == "off":
            return self.caller.run(feeds)
        other = self._other(way)
        if other is None:
            raise GraphoptError(f"{self.captured.source}: cannot be run {way}")
        if way != "exact":
            return other.run(feeds)
        return other.run({name: wide(value) if is_float(value) else value for name, value in feeds.items()})

    def has(self, way: Way) -> bool:
        if way == "shaken":
            floats = any(t.is_floating_point() for t in self.captured.tensors().values())
            return not floats and self._other(way) is not None
        return way == "off" or (way == "exact" and self._other(way) is not None)

    def coverage(self, samples: Sequence[Sample]) -> Coverage:
        """How much of the program the samples exercise, kept for the same samples."""
        from graphopt.programs.exercised import measure

        key = tuple(id(s) for s in samples)
        if self._coverage is None or self._coverage[0] != key:
            self._coverage = (key, measure(self.captured, samples))
        return self._coverage[1]

    def close(self) -> None:
        """Lets go of the copies in other precision."""
        self._others.clear()

    def _other(self, way: Way) -> Caller | None:
        if way not in self._others:
            self._others = {way: self._made(way)}
        return self._others[way]

    def _made(self, way: Way) -> Caller | None:
        module = self.captured.reference
        held = [*module.parameters(), *module.buffers()]
        if sum(t.numel() * t.element_size() for t in held) > COPY_LIMIT:
            return None
        try:
            made = copy.deepcopy(module)
            if way == "exact":
                made = made.double()
            else:
                _shake(made, self.eps, self.seed)
        except Exception:  # a module that cannot be copied, or has no double precision: a figure less
            return None
        return Caller(self.captured, made, threads=self.threads, state=self.state)


def _shake(module: torch.nn.Module, eps: float, seed: int) -> None:
    """Changes every float parameter by a factor of 1 - eps, 1 or 1 + eps."""
    import torch

    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                step = torch.randint(-1, 2, parameter.shape, generator=random).to(parameter.device, torch.float32)
                own = max(eps, torch.finfo(parameter.dtype).eps)
                parameter.copy_(parameter * (1 + own * step))


def _coarsest(captured: Captured) -> float:
    """The eps of the coarsest floats that the program computes in."""
    import torch

    held = [*captured.program.state_dict.values(), *captured.tensors().values()]
    kinds = {t.dtype for t in held if isinstance(t, torch.Tensor) and t.dtype in (torch.float16, torch.bfloat16)}
    return max((torch.finfo(kind).eps for kind in kinds), default=eps_of(np.dtype(np.float32)))


def same_bits(original: EagerModule, caller: Caller, samples: Sequence[Sample]) -> bool:
    """Whether a program gives what the module gives to the last bit: then capture itself rounded nothing.

    Raises:
        GraphoptError: the program does not run.
    """
    from graphopt.verification.metrics import identical

    for sample in samples:
        expected, found = original.outputs(sample), caller.run(sample.feeds)
        for name, value in expected.items():
            pairs = zip(leaves(found[name]), leaves(value), strict=True)
            if not all(identical(a, b) for (_, a), (_, b) in pairs):
                return False
    return True
