"""`graphopt run`: load, rewrite, verify, measure, save, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import options as o
from graphopt.cli.output import check_target, only_result, print_text, remark
from graphopt.cli.reports import check_reports, write_reports
from graphopt.errors import OptionError

if TYPE_CHECKING:
    from graphopt.pipeline.runner import Candidate
    from graphopt.programs.run import Optimized
    from graphopt.reporting.progress import Progress
    from graphopt.request import Request
    from graphopt.run import Result



def run(
    model: o.AnyModel,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="Where the result goes. Without it MODEL.opt.onnx or MODEL.opt.pt2 beside the model, or FACTORY.opt.onnx here. Of a "
            "torch model its suffix says what comes out, .onnx or .pt2.",
        ),
    ] = None,
    preset: o.Preset = "default",
    passes: o.Passes = None,
    skip: o.Skip = None,
    set_: o.Set = None,
    plugin: o.Plugin = None,
    fix_initializers: o.FixInitializers = False,
    provider: o.Provider = "cpu",
    threads: o.Threads = 0,
    shape: o.Shape = None,
    samples: o.Samples = None,
    verify: Annotated[
        str, typer.Option(metavar="off|end|each", help="Verify never, the result, or after every pass.", rich_help_panel="Verification")
    ] = "end",
    tolerance: o.Tolerance = None,
    budget: o.Budget = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Your own measure of quality; FILE.py:FUNCTION works too.", rich_help_panel="Verification"
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the search for what is within the budget notes what it measured, to go on after an interruption; OUT.search.jsonl, "
            "until the run is over, without it.",
            rich_help_panel="Verification",
        ),
    ] = None,
    search_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="The longest that search may take.", rich_help_panel="Verification")
    ] = 300.0,
    calibration: o.Calibration = None,
    preprocess: o.Preprocess = None,
    seed: o.Seed = 0,
    no_bench: Annotated[bool, typer.Option("--no-bench", help="Do not measure speed.", rich_help_panel="Verification")] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Of a torch model, time torch.compile of it too.", rich_help_panel="Verification")
    ] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune/--no-tune",
            help="Search settings of the session that gain, and write them beside the result.",
            rich_help_panel="The target",
        ),
    ] = True,
    bake: Annotated[
        bool,
        typer.Option(
            "--bake", help="Write the graph that ONNX Runtime makes of the result, for this target alone.", rich_help_panel="The target"
        ),
    ] = False,
    explain: Annotated[
        list[str] | None,
        typer.Option(metavar="PASS", help="Print each application and refusal of a pass; repeatable.", rich_help_panel="Output"),
    ] = None,
    report: o.Reports = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    in_place: o.InPlace = False,
) -> int:
    """Optimize a model, prove that it computes the same, and measure what it gained.

    MODEL is an ONNX model, a torch program (.pt2, of torch.export), or a function that returns a torch module and example
    inputs, as package.module:factory or file.py:factory.
    """
    from graphopt.programs.sources import default_destination, is_program
    from graphopt.reporting.progress import Progress
    from graphopt.request import Request

    program = is_program(model)
    if program and output is None:
        output = default_destination(model, in_place=in_place)
    request = Request(
        model=model,
        output=output,
        preset=preset,
        passes=None if passes is None else o.names_of(passes, "--passes"),
        skip=o.names_of(skip, "--skip") if skip else (),
        options=o.settings_of(set_ or ()),
        plugins=tuple(plugin or ()),
        provider=provider,
        threads=threads,
        shapes=o.shapes_of(shape or ()),
        samples=samples,
        calibration=calibration,
        preprocess=preprocess,
        verify=verify,
        bench=not no_bench,
        tune=tune,
        tolerance=o.finite(tolerance, "--tolerance"),
        budget=o.budget_of(budget),
        metric=metric,
        journal=journal,
        search_seconds=search_seconds,
        seed=seed,
        fix_initializers=fix_initializers,
        bake=bake,
        in_place=in_place,
    )
    with only_result(json):
        _check(request, list(report or ()), list(explain or ()), program)
        result = _carried_out(request, program, compile_, Progress(quiet=quiet))
        if explain:
            result.report.extra["applications"] = [
                {"pass": a.pass_name, "node": a.label} for c in result.candidates for a in c.applications if a.pass_name in explain
            ]
        write_reports(result.report, report or ())
    if json:
        sys.stdout.write(result.report.to_json())
    elif not quiet:
        from graphopt.reporting.terminal import print_report

        print_report(result.report)
        for name in explain or ():
            print_text(_explained(result.candidates, name))
    if result.exit_code and (json or quiet):
        for warning in result.report.warnings or ["done, but not verified or not within what was asked"]:
            remark(f"warning: {warning}")
    return result.exit_code


def _carried_out(request: Request, program: bool, compile_: bool, progress: Progress) -> Result | Optimized:
    if program:
        from graphopt.extras import require_torch

        require_torch()
        from graphopt.programs.run import optimize_program

        return optimize_program(request.model, request, destination=request.output, compile=compile_, progress=progress)
    if compile_:
        raise OptionError("--compile: only a torch model can be compiled by torch")
    from graphopt.run import optimize

    return optimize(request, progress=progress)


def _check(request: Request, reports: list[Path], explain: list[str], program: bool) -> None:
    """Turn down what can be known to fail before any work is done, as far as `optimize` does not do so itself."""
    if not program or request.model.suffix.lower() == ".pt2":
        o.existing(request.model, "file")
    o.existing(request.samples, "samples file or folder")
    check_target(request.destination)
    check_reports(reports, request.model, request.destination)
    if explain:
        from graphopt.request import plan

        _, pipeline = plan(request)
        steps = {s.name for s in pipeline.steps}
        for name in explain:
            if name not in steps:
                raise OptionError(f"--explain {name}: the pipeline ({pipeline.name}) does not run that pass")


def _explained(candidates: Sequence[Candidate], name: str) -> str:
    """Every application and every refusal of a pass, a line each."""
    applied = [a.label for c in candidates for a in c.applications if a.pass_name == name]
    refused: list[Any] = [r for c in candidates for run in c.runs if run.name == name for r in run.refused]
    lines = ["", f"{name}: applied {len(applied):,}, refused {len(refused):,}"]
    lines += [f"  applied  {label}" for label in applied]
    lines += [f"  refused  {r.node}: {r.reason}" for r in refused]
    return "\n".join(lines)
