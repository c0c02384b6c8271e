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
            metavar="FILE.npz|DIR|MODULE:FUNCTION",
            help="Samples, without labels, to reconstruct layers on.",
            rich_help_panel=_PANEL,
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
        str,
        typer.Option(
            metavar="X|X%|XdB", help="Loss of quality that is accepted, 0.01 or 1%; of outputs also as 30dB.", rich_help_panel=_PANEL
        ),
    ] = "0.01",
    target_speedup: Annotated[
        float | None, typer.Option(metavar="X", help="Stop at this speed beside the original.", rich_help_panel=_PANEL)
    ] = None,
    recover: Annotated[
        bool, typer.Option("--recover/--no-recover", help="Reconstruct the layers behind a cut.", rich_help_panel=_PANEL)
    ] = True,
    tune: Annotated[
        bool | None,
        typer.Option(
            "--tune/--no-tune",
            help="Tune what is left against the original; where torch is installed, without either.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    tuning: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the tuning; may be given again.", rich_help_panel=_PANEL)
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="at-once|gradual", help="Cut each share out of the original, or step by step (where what is left is tuned).",
            rich_help_panel=_PANEL, show_default=False,
        ),
    ] = None,
    then: Annotated[
        str | None, typer.Option(metavar="PRESET", help="A preset that the result goes through, such as int8.", rich_help_panel=_PANEL)
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where trials are kept, to go on from; kept afterwards.", rich_help_panel=_PANEL)
    ] = None,
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

    A run that was cut off goes on where it was when it is started again.

    Exit code 1: nothing could be cut within the budget, or the target was not reached; the best that there is was written.
    """
    from graphopt.compression import CompressionRequest
    from graphopt.compression import compress as carry_out
    from graphopt.recovery.tuning.settings import parse
    from graphopt.reporting.progress import Progress
    from graphopt.request import Request

    run = Request(
        model=model, output=output, preset=preset, options=o.settings_of(set_ or ()), plugins=tuple(plugin or ()), provider=provider,
        threads=threads, metric=metric, budget=o.budget_of(budget), seed=seed, in_place=in_place, tune=False,
    )  # fmt: skip
    o.existing(model, "file")
    check_target(run.destination)
    check_reports(report or (), model, run.destination)
    if ":" not in data and not Path(data).exists():
        raise OptionError(f"--data {data}: no such file or folder, nor MODULE:FUNCTION")
    request = CompressionRequest(
        run, data, o.finite(target_speedup, "--target-speedup"), recover, tune, parse(tuple(tuning or ())), strategy, trials, then=then,
        journal=journal,
    )  # fmt: skip
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
    """What was tried: share, speed, loss; and what the result loses in the end."""
    samples = story["samples"]
    counts = f"{samples['fitted']} samples to learn from, {samples['judged']} to decide by, {samples['tested']} to judge by in the end"
    lines = ["", f"Tried (judged by {story['judged_by']}; {counts}):"]
    for trial in sorted(story["trials"], key=lambda t: t["share"]):
        mark = "*" if trial["taken"] else " "
        speed = f"{trial['ratio']:.2f}x ({trial['low']:.2f}-{trial['high']:.2f})"
        lines.append(f" {mark} cut {trial['share']:6.1%}   {speed:22} loss {trial['loss']:8.3%}   {trial['parameters']:,} parameters")
    final = story["final"]
    gap = "" if final["gap"] is None else f", {final['gap']:+.3%} beside what decided"
    lines.append(f"The result loses {final['loss']:.3%} in the end{gap}.")
    return "\n".join(lines)
