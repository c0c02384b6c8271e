"""`graphopt bench`: how fast is a model, alone or beside another?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli import options as o
from graphopt.cli.output import only_result, print_json, print_text

_ROWS = 12  # operators of a profile that are shown


def bench(
    a: Annotated[Path, typer.Argument(metavar="A", help="An ONNX model.", show_default=False)],
    b: Annotated[Path | None, typer.Argument(metavar="[B]", help="A second one, to time beside it.", show_default=False)] = None,
    samples: o.Samples = None,
    shape: o.Shape = None,
    provider: o.Provider = "cpu",
    threads: o.Threads = 0,
    seed: o.Seed = 0,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time goes, by operator.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, metavar="X", help="Longest time to measure.")] = 15.0,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Time a model, or two in interleaved pairs: the ratio is A's time over B's, so above 1 B is faster."""
    from graphopt import measurement, runtime
    from graphopt.cli.sampling import find_samples
    from graphopt.formats import load_model
    from graphopt.reporting.progress import Progress
    from graphopt.verification import Reference, for_timing

    for path in (p for p in (a, b) if p is not None):
        o.onnx_only(path, "graphopt bench")
    shapes = o.shapes_of(shape or ())
    o.existing(samples, "samples file or folder")
    with only_result(json):
        runtime.resolve_provider(provider)
        models = [load_model(path) for path in (a, b) if path is not None]
        progress = Progress(quiet=quiet)
        reference = Reference(a, threads=threads, provider=provider, seed=seed)
        with progress.stage("finding samples"):
            inputs, warnings = find_samples(models[0], reference, samples, shapes, seed, count=1)
            reference.close()
        sample = for_timing(inputs)[0]
        result: dict[str, Any] = {
            "a": str(a),
            "b": None if b is None else str(b),
            "target": measurement.detect(provider, threads).to_dict(),
            "sample": {"origin": sample.origin, "shapes": sample.shapes()},
            "latency": None,
            "speed": None,
            "profile": None,
            "warnings": warnings,
        }
        how = {"threads": threads, "provider": provider}
        with progress.stage("measuring") as stage:
            if b is None:
                result["latency"] = measurement.bench(a, sample.feeds, max_seconds=seconds, **how).to_dict()
            else:
                result["speed"] = measurement.compare(a, b, sample.feeds, max_seconds=seconds, progress=stage, **how).to_dict()
        if profile:
            with progress.stage("profiling"):
                result["profile"] = {str(m.path): measurement.profile(m.path, sample.feeds, **how).to_dict() for m in models}
    if json:
        print_json(result)
    elif not quiet:
        print_text(_text(result))


def _text(result: dict[str, Any]) -> str:
    from graphopt.reporting import words

    target = result["target"]
    shapes = ", ".join(f"{name} {dims}" for name, dims in result["sample"]["shapes"].items())
    lines = [f"{target['provider']}, {target['device']}, {target['isa']}; {result['sample']['origin']}" + (f": {shapes}" if shapes else "")]
    if latency := result["latency"]:
        lines.append(
            f"{words.milliseconds(latency['ms'])} a run ({words.milliseconds(latency['low'])} to {words.milliseconds(latency['high'])}, "
            f"{latency['runs']:,} runs, threads: {latency['threads']}); {words.milliseconds(latency['session_ms'])} to make a session"
        )
    else:
        speed = result["speed"]
        lines += [f"{result['b']} beside {result['a']}: {words.speed(speed, speed['threads'])}", words.latency(speed)]
    for path, profile in (result["profile"] or {}).items():
        lines += ["", f"{path}: {words.milliseconds(profile['run_ms'])} a run with the profiler on"]
        for row in profile["operators"][:_ROWS]:
            lines.append(f"  {row['share']:6.1%}  {row['ms']:9.3f} ms  {row['count']:7.0f} x  {row['operator']} ({row['provider']})")
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    return "\n".join(lines)
