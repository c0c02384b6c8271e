"""`graphopt export`: a torch module as ONNX or as a `.pt2`, with no pass run over it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli import options as o
from graphopt.cli.output import check_target, only_result, print_json, print_text
from graphopt.errors import InputError


def export(
    model: Annotated[Path, typer.Argument(metavar="MODULE:FACTORY", help="What gives a module and example inputs; or a .pt2.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Where it goes: OUT.onnx or OUT.pt2.")],
    opset: Annotated[int | None, typer.Option(min=18, max=30, metavar="N", help="Opset of the ONNX model.")] = None,
    eval_: Annotated[bool, typer.Option("--eval", help="Export a module in training mode as if it were in eval mode.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare the result with the module.")] = False,
    tolerance: o.Tolerance = None,
    threads: o.Threads = 0,
    seed: o.Seed = 0,
    in_place: Annotated[bool, typer.Option("--in-place", help="Allow that a .pt2 itself is replaced.")] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Export a torch module, and compare what comes out with it. Exit code 0: the same; 1: different, or nothing was proved."""
    from graphopt.extras import require_torch
    from graphopt.programs.sources import is_program
    from graphopt.reporting.progress import Progress

    if not is_program(model):
        raise InputError(f"{model}: neither MODULE:FACTORY nor a .pt2: there is nothing of torch to export")
    require_torch()
    from graphopt.programs.exporting import export_program

    check_target(output)
    with only_result(json), Progress(quiet=quiet).stage("exporting"):
        found = export_program(
            model, output, opset=opset, check=not no_verify, eval=eval_, tolerance=o.finite(tolerance, "--tolerance"), threads=threads,
            seed=seed, in_place=in_place,
        )  # fmt: skip
    if json:
        print_json(found)
    elif not quiet:
        print_text(_text(found))
    return 0 if no_verify or found["verification"]["verdict"] in ("identical", "equivalent") else 1


def _text(found: dict[str, Any]) -> str:
    from graphopt.reporting import words

    program, verification = found["program"], found["verification"]
    lines = [f"{found['model']['path']}: {program['nodes']:,} operators, {program['parameters']:,} parameters", words.verdict(verification)]
    lines += [f"  {words.failure(output)}" for output in (verification or {}).get("outputs", ()) if output["ok"] is False]
    lines += [f"note: {note}" for note in [*found["notes"], *((verification or {}).get("notes") or [])]]
    lines += [f"warning: {warning}" for warning in found["warnings"]]
    return "\n".join([*lines, f"written to {found['output']}"])
