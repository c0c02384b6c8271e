"""`graphopt.optimize`: a whole run from Python, on an ONNX model or a torch one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import InputError, OptionError
from graphopt.request import Request

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from graphopt.budget import Budget
    from graphopt.reporting import Report
    from graphopt.reporting.progress import Progress


@dataclass(frozen=True)
class Optimized:
    """What came of `optimize`.

    Attributes:
        report: what was done, verified and measured: `report.to_dict()` is the JSON of `graphopt run --json`.
        exit_code: 0: done and verified; 1: done, but not verified, or not within what was asked.
        program: of a torch model, the rewritten program (`torch.export.ExportedProgram`); None of an ONNX model.
        module: the same as a `torch.nn.Module`, called as the one that was given.
        output: the file that was written; None where none was asked for.
    """

    report: Report
    exit_code: int
    program: ExportedProgram | None = None
    module: torch.nn.Module | None = None
    output: Path | None = None

    @property
    def verified(self) -> bool:
        """Whether the result was compared with the original and computes the same."""
        return (self.report.verification or {}).get("verdict") in ("identical", "equivalent", "within-budget")

    @property
    def onnx(self) -> Path | None:
        """The ONNX model that was written, if one was."""
        return self.output if self.output is not None and self.output.suffix.lower() == ".onnx" else None


def optimize(
    model: Any,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    output: str | Path | None = None,
    preset: str = "default",
    passes: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    plugins: Sequence[str] = (),
    samples: str | Path | None = None,
    verify: str = "end",
    bench: bool = False,
    compile: bool = False,
    tune: bool = False,
    tolerance: float | None = None,
    budget: Budget | float | str | None = None,
    provider: str = "cpu",
    threads: int = 0,
    seed: int = 0,
    eval: bool = False,
    output_names: Sequence[str] | None = None,
    in_place: bool = False,
    progress: Progress | None = None,
) -> Optimized:
    """Optimize a model, prove that it computes the same, and, with `bench`, measure what it gained. The model is not changed.

    Args:
        model: a `torch.nn.Module`, `torch.fx.GraphModule` or `torch.export.ExportedProgram`; or a path: to a `.pt2`,
            "package.module:factory" or "file.py:factory" (a function that returns a module and example inputs), or to
            an ONNX model.
        example_inputs: of a module: a tuple, a dict by argument, or one tensor.
        dynamic_shapes: of a module: as `torch.export` takes them, or `{"image": {0: "batch"}}`; found by trying
            without.
        output: where the result goes, `.onnx` or `.pt2`. Without it a torch model is written nowhere, and an ONNX model
            to `<stem>.opt.onnx` beside it.
        options: by pass, values of its options.
        samples: `.npz` file or folder of inputs to verify on; made from the example inputs, or the graph, without.
        budget: loss accepted of a lossy result: relative as a number, or as `graphopt run --budget` reads it ("30dB", "cos:0.99").
        bench, compile, tune: measure speed, and drop what is slower; time torch.compile too; search settings of the session.
        eval: take a module in training mode as if it were in eval mode, instead of refusing it.
        output_names: names of a torch model's outputs.

    Raises:
        GraphoptError: the request, the model or its inputs are at fault; nothing was written.
    """
    from graphopt.programs.sources import is_program

    path = isinstance(model, str | Path)
    destination = None if output is None else Path(output)
    request = Request(
        model=Path(model) if path else Path(type(model).__name__), output=destination, preset=preset,
        passes=None if passes is None else tuple(passes), skip=tuple(skip), options=options or {}, plugins=tuple(plugins),
        samples=None if samples is None else Path(samples), verify=verify, bench=bench, tune=tune, tolerance=tolerance, budget=budget,
        provider=provider, threads=threads, seed=seed, in_place=in_place,
    )  # fmt: skip
    if path and not is_program(model):
        given = (example_inputs, dynamic_shapes, output_names, eval or None, compile or None)
        if any(value is not None for value in given):
            raise OptionError(f"{model}: example inputs, dynamic shapes, output names, eval and compile are of torch models alone")
        from graphopt.run import optimize as run

        result = run(request, progress=progress)
        return Optimized(result.report, result.exit_code, output=request.destination)
    if not path and type(model).__module__.startswith("onnx"):
        raise InputError(f"an ONNX model in memory ({type(model).__name__}): save it, and give its path")
    from graphopt.extras import require_torch

    require_torch()
    from graphopt.programs.run import optimize_program

    made = optimize_program(
        model, request, destination=destination, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes, eval=eval,
        outputs=None if output_names is None else list(output_names), compile=compile, progress=progress,
    )  # fmt: skip
    return Optimized(made.report, made.exit_code, made.program, made.module, destination)
