"""`graphopt convert`: an ONNX model as a program of torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import options as o
from graphopt.cli.output import check_target, only_result, print_json, print_text
from graphopt.errors import OptionError

if TYPE_CHECKING:
    from graphopt.model import Model
    from graphopt.programs.convert import Converted
    from graphopt.verification.original import Original


def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX model.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.pt2", help="Where the program goes.", show_default=False)],
    samples: o.Samples = None,
    tolerance: o.Tolerance = None,
    shape: o.Shape = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=VALUE", help="Make the program of one value of an input, which it then does not take; repeatable."),
    ] = None,
    threads: o.Threads = 0,
    seed: o.Seed = 0,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Turn an ONNX model into a program of torch (.pt2), verified against ONNX Runtime.

    Exit code 0: written and verified; 1: written, but nothing was proved, or not written because it differs.
    """
    from graphopt.cli.sampling import find_samples
    from graphopt.extras import require_torch
    from graphopt.formats import load_model
    from graphopt.programs.convert import convert as make
    from graphopt.programs.emit import to_pt2
    from graphopt.programs.fixing import fix_inputs, read_values, with_values
    from graphopt.reporting.progress import Progress
    from graphopt.verification import Reference

    if output.suffix != ".pt2":
        raise OptionError(f"{output}: convert writes programs of torch, whose names end in .pt2")
    require_torch("imports into torch")
    check_target(output)
    shapes = o.shapes_of(shape or ())
    o.finite(tolerance, "--tolerance")
    o.existing(samples, "samples file or folder")
    seconds: dict[str, float] = {}
    written = None
    with only_result(json):
        progress = Progress(quiet=quiet)
        original = load_model(model, shapes=shapes or None)
        values = read_values(original, o.values_of(fix or ()))
        reference = Reference(model, threads=threads, seed=seed)
        with progress.stage("finding samples"), _timed(seconds, "samples"):
            if values and samples is None:
                inputs, warnings = find_samples(fix_inputs(original, values), _Fed(reference, values), None, shapes, seed)
                inputs = with_values(inputs, values)
            else:
                inputs, warnings = find_samples(original, reference, samples, shapes, seed)
        with progress.stage("converting and verifying"), _timed(seconds, "convert"):
            found = make(original, reference, inputs, tolerance=tolerance, values=values)
        reference.close()
        if found.verification is not None and found.verification.verdict != "different":
            with progress.stage("writing"), _timed(seconds, "save"):
                written = to_pt2(found.captured.program, output, found.captured, source=model)
    found.notes += warnings
    result = _result(original, found, written, seconds)
    if json:
        print_json(result)
    elif not quiet:
        print_text(_text(result))
    return 0 if found.same and written else 1


class _Fed:
    """A model that some inputs are always the same of."""

    def __init__(self, reference: Original, values: dict[str, Any]) -> None:
        self._reference, self._values = reference, values

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        return self._reference.run({**feeds, **self._values})


class _timed:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.start


def _result(model: Model, found: Converted, written: Path | None, seconds: dict[str, float]) -> dict[str, Any]:
    from importlib.metadata import version

    from graphopt.model import count_nodes

    captured = found.captured
    parameters = dict(captured.program.named_parameters())
    assert found.verification is not None
    return {
        "version": version("graphopt"),
        "model": {
            "path": str(model.path),
            "kind": model.kind,
            "opset": model.graph.opset_imports.get(""),
            "nodes": count_nodes(model.graph),
        },
        "output": str(written) if written is not None else None,
        "program": {
            "nodes": sum(n.op == "call_function" for n in captured.program.graph.nodes),
            "parameters": sum(p.numel() for p in parameters.values()),
            "inputs": list(captured.inputs),
            "outputs": list(captured.outputs),
        },
        "dynamic": {name: list(bounds) for name, bounds in captured.ranges.items()},
        "fixed": found.fixed,
        "values": {name: value.tolist() for name, value in found.values.items()},
        "tensors": found.tensors,
        "verification": found.verification.to_dict(),
        "notes": list(found.notes),
        "seconds": seconds,
    }


def _text(result: dict[str, Any]) -> str:
    from graphopt.reporting import words

    program, verification = result["program"], result["verification"]
    where = result["output"] or "not written: it does not compute what the model computes"
    lines = [
        f"{result['model']['path']} -> {where}",
        f"  {result['model']['nodes']} nodes -> {program['nodes']} calls of torch, {program['parameters']:,} parameters",
    ]
    for name, (low, high) in result["dynamic"].items():
        # torch states 2 for the lower end of every dim that it does not know to be larger; 1 runs as well.
        ends = [f"from {low}"] * (low > 2) + [f"up to {high}"] * (high is not None)
        lines.append(f"  dim '{name}' is dynamic{', ' if ends else ''}{' '.join(ends)}")
    for name, size in result["fixed"].items():
        lines.append(f"  dim '{name}' is fixed at {size}: torch.export takes the program at this size alone")
    lines += [f"  input '{name}' is fixed at {value}: the program does not take it" for name, value in result["values"].items()]
    lines.append(f"  {words.verdict(verification)}")
    lines += [f"  {words.failure(output)}" for output in verification["outputs"] if output["ok"] is False]
    notes = [n for n in result["notes"] if "is dynamic (" not in n]  # said above
    lines += [f"note: {note}" for note in [*verification["notes"], *notes]]
    return "\n".join(lines)
