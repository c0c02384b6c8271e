"""Does one model compute what a torch program computes? What `graphopt verify` asks where the first of two is of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt import runtime
from graphopt.budget import Budget
from graphopt.errors import InputError
from graphopt.extras import require_torch
from graphopt.programs.calling import Caller
from graphopt.programs.capture import capture
from graphopt.programs.captured import Captured
from graphopt.programs.sampling import given_samples, make_samples
from graphopt.programs.sources import is_program
from graphopt.programs.verify import EagerModule
from graphopt.verification import verify


def compare_with(
    a: Path,
    b: Path,
    *,
    effect: str = "rounding",
    samples: Path | None = None,
    tolerance: float | None = None,
    budget: Budget | float | None = None,
    provider: str = "cpu",
    threads: int = 0,
    seed: int = 0,
) -> tuple[dict[str, Any], list[str]]:
    """The verification of `b`, an ONNX model or a torch program, beside `a`, a `.pt2` or "module:factory"; and warnings.

    Raises:
        GraphoptError: one of them cannot be read, or they do not take the same inputs and give as many outputs.
    """
    require_torch()
    captured = capture(a)
    original = EagerModule(captured, threads=threads, seed=seed, state=is_program(b))
    candidate: Any
    if is_program(b):
        other = capture(b)
        if other.inputs != captured.inputs or len(other.outputs) != len(captured.outputs):
            raise InputError(f"{b}: takes {_shown(other)}, and {a} takes {_shown(captured)}")
        candidate = Caller(captured, other.reference, threads=threads)
    else:
        candidate = _onnx(b, captured, original, provider, threads)
    warnings: list[str] = []
    if samples is not None:
        chosen = given_samples(captured, samples)
        original.outputs(chosen[0])
    else:
        chosen, warnings = make_samples(captured, original.run, seed=seed)
    found = verify(
        None, candidate, chosen, effect=effect, tolerance=tolerance, budget=budget, threads=threads, provider=provider, reference=original
    )
    return found.to_dict(), warnings


def _shown(captured: Captured) -> str:
    return f"{', '.join(captured.inputs)} and gives {len(captured.outputs)} outputs"


def _onnx(path: Path, captured: Captured, original: EagerModule, provider: str, threads: int) -> Any:
    """The file itself where its names are those of the program; else its session, inputs and outputs taken in their order."""
    from graphopt.formats import load_model

    graph = load_model(path).graph.graph
    inputs = [v.name for v in graph.inputs if v.name not in graph.initializers]
    outputs = [v.name for v in graph.outputs]
    if len(inputs) != len(captured.inputs) or len(outputs) != len(captured.outputs):
        gives = f"takes {len(inputs)} inputs and gives {len(outputs)} outputs"
        raise InputError(f"{path}: {gives}; the torch program takes {_shown(captured)}")
    if set(inputs) == set(captured.inputs) and outputs == original.output_names:
        return path
    return _InOrder(path, captured, inputs, provider, threads)


class _InOrder:
    """An ONNX model under other names than those of the program."""

    def __init__(self, path: Path, captured: Captured, inputs: list[str | None], provider: str, threads: int) -> None:
        self.session = runtime.session(path, threads=threads, provider=provider)
        self.names = dict(zip(captured.inputs, inputs, strict=True))
        self.output_names = list(captured.outputs)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        found = runtime.run(self.session, {self.names[name]: value for name, value in feeds.items()})
        return dict(zip(self.output_names, found.values(), strict=True))
