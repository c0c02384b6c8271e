"""`graphopt verify`: does one model compute what another one computes?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli import options as o
from graphopt.cli.output import only_result, print_json, print_text
from graphopt.errors import OptionError

_SAME = ("identical", "equivalent", "within-budget")


def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="The original, which is right: ONNX, .pt2 or MODULE:FACTORY.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="The model to judge; a .pt2 only beside one of torch.", show_default=False)],
    effect: Annotated[
        str,
        typer.Option(
            metavar="exact|rounding|lossy", help="What may differ: nothing but the last bits, rounding, or as far as the budget goes."
        ),
    ] = "rounding",
    samples: o.Samples = None,
    tolerance: o.Tolerance = None,
    budget: o.Budget = None,
    shape: o.Shape = None,
    provider: o.Provider = "cpu",
    threads: o.Threads = 0,
    seed: o.Seed = 0,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Compare what two models compute. Exit code 0: the same; 1: different, or nothing was proved."""
    from graphopt import runtime
    from graphopt.cli.sampling import find_samples
    from graphopt.formats import load_model
    from graphopt.programs.sources import is_program
    from graphopt.reporting.progress import Progress
    from graphopt.verification import Reference
    from graphopt.verification import verify as compare

    shapes = o.shapes_of(shape or ())
    o.finite(tolerance, "--tolerance")
    accepted = o.budget_of(budget)
    o.existing(samples, "samples file or folder")
    if is_program(a):
        if shapes:
            raise OptionError("--shape: the shapes of a torch program are those of its example inputs and dynamic shapes")
        from graphopt.programs.comparing import compare_with

        with only_result(json):
            runtime.resolve_provider(provider)
            with Progress(quiet=quiet).stage("verifying"):
                found, warnings = compare_with(
                    a, b, effect=effect, samples=samples, tolerance=tolerance, budget=accepted, provider=provider, threads=threads,
                    seed=seed,
                )  # fmt: skip
        return _told(a, b, found, warnings, json, quiet)
    o.onnx_only(b, "graphopt verify with an ONNX model first")
    with only_result(json):
        runtime.resolve_provider(provider)
        original = load_model(a)
        load_model(b)  # a file that is no model is the request's fault, not a model that differs
        progress = Progress(quiet=quiet)
        reference = Reference(a, threads=threads, provider=provider, seed=seed)
        with progress.stage("finding samples"):
            inputs, warnings = find_samples(original, reference, samples, shapes, seed)
        with progress.stage("verifying"):
            found = compare(
                a, b, inputs, effect=effect, tolerance=tolerance, budget=accepted, threads=threads, provider=provider, reference=reference
            ).to_dict()
    return _told(a, b, found, warnings, json, quiet)


def _told(a: Path, b: Path, found: dict[str, Any], warnings: list[str], json: bool, quiet: bool) -> int:
    result = {"a": str(a), "b": str(b), "verification": found, "warnings": warnings}
    if json:
        print_json(result)
    elif not quiet:
        print_text(_text(found, warnings))
    return 0 if found["verdict"] in _SAME else 1


def _text(found: dict[str, Any], warnings: list[str]) -> str:
    from graphopt.reporting import words

    lines = [words.verdict(found)]
    for output in found["outputs"]:
        if output["ok"] is False:
            lines.append(f"  {words.failure(output)}")
        else:
            errors = ", ".join(f"{k} {output[k]:.3g}" for k in ("max_abs", "max_rel") if output.get(k) is not None)
            if output.get("cosine") is not None:
                errors += f", cosine {words.cosine(output['cosine'])}"
            lines.append(f"  output '{output['name']}': ok ({errors})" + (f"; {output['reason']}" if output.get("reason") else ""))
    lines += [f"note: {note}" for note in found["notes"]]
    lines += [f"warning: {warning}" for warning in warnings]
    return "\n".join(lines)
