"""What `graphopt run` gains on the public trained models and on the recipes: nodes, bytes, latency, session creation.

    python -m benchmarks.speed [NAME...] [--recipes DIR] [--preset default] [--threads 1] [--seconds 15] [--markdown]

Each model is optimized without `--samples`, and then timed against its original on the zoo's plausible inputs (the
recipes: on synthesized ones), in interleaved pairs, fresh sessions, all runtime optimizations on. A ratio above 1 is
faster; [low, high] is its 95 % confidence interval.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from graphopt.measurement import compare
from graphopt.optimize import optimize
from graphopt.request import Request
from graphopt.verification import Reference, synthesize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--recipes", type=Path, help="a folder of exported recipes (python -m models.recipes --all DIR)")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    print("| model | verdict | nodes | MB | ratio | interval | ms before | ms after | session ms |\n|---|---|---|---|---|---|---|---|---|")
    for name, path in _models(options):
        if not options.names or name in options.names:
            print(row(name, path, options), flush=True)


def _models(options: argparse.Namespace) -> list[tuple[str, Path]]:
    if options.recipes is not None:
        return [(p.stem, p) for p in sorted(options.recipes.glob("*.onnx"))]
    from models.zoo import MODELS, fetch

    return [(name, fetch(name)) for name in MODELS]


def row(name: str, path: Path, options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.onnx"
        report = optimize(Request(path, target, preset=options.preset, threads=options.threads, tune=False)).report
        speed = compare(path, target, _feeds(name, path, options), threads=options.threads, max_seconds=options.seconds)
    before, after = report.before, report.after
    return (
        f"| {name} | {report.verification['verdict']} | {before['nodes']} to {after['nodes']} "
        f"| {before['bytes'] / 2**20:.2f} to {after['bytes'] / 2**20:.2f} | {speed.ratio:.3f} | {speed.low:.3f} to {speed.high:.3f} "
        f"| {speed.before_ms:.2f} | {speed.after_ms:.2f} | {speed.session_before_ms:.0f} to {speed.session_after_ms:.0f} |"
    )


def _feeds(name: str, path: Path, options: argparse.Namespace) -> dict:
    if options.recipes is None:
        from models.zoo import feeds

        return feeds(name)
    from graphopt.formats import load_model

    reference = Reference(path, threads=options.threads)
    return synthesize(load_model(path).graph, reference.run).samples[0].feeds


if __name__ == "__main__":
    main()
