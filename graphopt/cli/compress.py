"""`graphopt compress`: the fastest smaller model within a loss of quality, found by cutting and reconstructing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli import options as o
from graphopt.cli.output import check_target, only_result, print_text
from graphopt.cli.reports import check_reports, write_reports
from graphopt.errors import OptionError

_PANEL = "Compression"


def compress(
    model: o.ModelFile,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE.npz|DIR|MODULE:FUNCTION", help="Samples, without labels, to reconstruct layers on.", rich_help_panel=_PANEL,
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Where the result goes; MODEL.opt.onnx without it.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Your own measure of quality; FILE.py:FUNCTION works too.", rich_help_panel=_PANEL),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0, metavar="X", help="Loss of quality that is accepted, 0.01 for 1 %.", rich_help_panel=_PANEL)
    ] = 0.01,
    target_speedup: Annotated[
        float | None, typer.Option(metavar="X", help="Stop at this speed beside the original.", rich_help_panel=_PANEL)
    ] = None,
    recover: Annotated[
        bool, typer.Option("--recover/--no-recover", help="Reconstruct the layers behind a cut.", rich_help_panel=_PANEL)
    ] = True,
    trials: Annotated[int, typer.Option(min=1, max=50, metavar="N", help="Shares tried at the most.", rich_help_panel=_PANEL)] = 8,
    preset: o.Preset = "prune",
    set_: o.Set = None,
    plugin: o.Plugin = None,
    provider: o.Provider = "cpu",
    threads: o.Threads = 0,
    seed: o.Seed = 0,
    report: o.Reports = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    in_place: o.InPlace = False,
) -> int:
    """Cut channels, neurons and heads out of a model, and win back what that cost, within a budget of quality.

    Exit code 1: nothing could be cut within the budget, or the target was not reached; the best that there is was written.
    """
    from graphopt.compression import CompressionRequest
    from graphopt.compression import compress as carry_out
    from graphopt.reporting.progress import Progress
    from graphopt.request import Request

    run = Request(
        model=model, output=output, preset=preset, options=o.settings_of(set_ or ()), plugins=tuple(plugin or ()), provider=provider,
        threads=threads, metric=metric, budget=o.finite(budget, "--budget"), seed=seed, in_place=in_place, tune=False,
    )  # fmt: skip
    o.existing(model, "file")
    check_target(run.destination)
    check_reports(report or (), model, run.destination)
    if ":" not in data and not Path(data).exists():
        raise OptionError(f"--data {data}: no such file or folder, nor MODULE:FUNCTION")
    request = CompressionRequest(run, data, o.finite(target_speedup, "--target-speedup"), recover, trials)
    with only_result(json):
        result = carry_out(request, progress=Progress(quiet=quiet))
        write_reports(result.report, report or ())
    if json:
        sys.stdout.write(result.report.to_json())
    elif not quiet:
        from graphopt.reporting.terminal import print_report

        print_report(result.report)
        print_text(_curve(result.report.extra["compression"]))
    return result.exit_code


def _curve(story: dict[str, Any]) -> str:
    """What was tried: share, speed, loss."""
    samples = story["samples"]
    lines = ["", f"Tried (judged by {story['judged_by']}; {samples['fitted']} samples to fit, {samples['judged']} to judge):"]
    for trial in sorted(story["trials"], key=lambda t: t["share"]):
        mark = "*" if trial["share"] == story["share"] else " "
        speed = f"{trial['ratio']:.2f}x ({trial['low']:.2f}-{trial['high']:.2f})"
        lines.append(f" {mark} cut {trial['share']:6.1%}   {speed:22} loss {trial['loss']:8.3%}   {trial['parameters']:,} parameters")
    return "\n".join(lines)
