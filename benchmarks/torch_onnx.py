"""A torch module made into ONNX, beside the ONNX files that torch's exporters make of it: which way gives the better model.

    python -m benchmarks.torch_onnx [name ...] [--small] [--dir DIR] [--seconds 20] [--threads 1] [--measure]

For each recipe, and each net behind the zoo: `graphopt.optimize(module, output="x.onnx")` beside `graphopt run` on the module's
legacy and its dynamo export. Batches of the three results are timed in turn in ONNX Runtime; the ratio, above 1 where the module's
own way is the faster, is a median over interleaved pairs beside the better of the two exports. `=`: the runtime makes the same graph
of both. Models that are in DIR already are not made again.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import graphopt
from graphopt.formats import load_model
from graphopt.measurement import Speed, race, same_runtime_graph
from graphopt.measurement.timing import timed_session
from graphopt.model import count_nodes
from models.exporting import export_module
from models.recipes import RECIPES
from models.zoo import NETS, build_net

EXPORTERS = ("legacy", "dynamo")


@dataclass(frozen=True)
class Source:
    """A module, inputs to export it with and to time it on, and names and free axes as an exporter takes them."""

    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    timed_on: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[str, Mapping[int, str]]]


def source(name: str, small: bool) -> Source:
    if name in RECIPES:
        recipe = RECIPES[name]
        dynamic = {how: recipe.dynamic(how) for how in EXPORTERS}
        size = "medium" if small else "single"
        return Source(recipe.build(small), recipe.example_inputs(), recipe.example_inputs(size=size), recipe.outputs, dynamic)
    built = build_net(name)
    one = {key: torch.cat([value[:1]]) for key, value in built.inputs.items()}
    return Source(built.module, built.inputs, one, built.outputs, dict.fromkeys(EXPORTERS, built.dynamic))


def made(name: str, given: Source, folder: Path, measure: bool) -> dict[str, Path]:
    """The results by the way they came: "module", "legacy", "dynamo"; without those that an exporter cannot make."""
    found = {}
    for way in ("module", *EXPORTERS):
        target = folder / f"{name}.{way}.opt.onnx"
        if not target.is_file():
            try:
                if way == "module":
                    shapes = given.dynamic["dynamo"]
                    names = {"dynamic_shapes": shapes, "output_names": given.outputs}
                    graphopt.optimize(given.module, given.inputs, output=target, bench=measure, threads=1, **names)
                else:
                    exported = folder / f"{name}.{way}.onnx"
                    export_module(given.module, given.inputs, exported, way, outputs=given.outputs, dynamic=given.dynamic[way])
                    graphopt.optimize(exported, output=target, bench=measure, threads=1)
            except Exception as error:
                print(f"{name}: {way}: {str(error).splitlines()[0][:200]}", flush=True)
                continue
            gc.collect()
        if target.is_file():
            found[way] = target
    return found


def feeds(given: Source, path: Path) -> dict[str, np.ndarray]:
    """What to time on, of the size that a free axis has there, or that the model is fixed to."""
    found = {}
    for value in load_model(path).graph.graph.inputs:
        array = given.timed_on[value.name].numpy()
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int) and dim != array.shape[axis]:
                array = np.take(array, np.arange(dim) % array.shape[axis], axis=axis)
        found[value.name] = array
    return found


def compared(name: str, given: Source, paths: Mapping[str, Path], threads: int, seconds: float) -> str:
    """A line: nodes of each, milliseconds, the ratio."""
    nodes = {way: count_nodes(load_model(path).graph) for way, path in paths.items()}
    others = [way for way in EXPORTERS if way in paths]
    if "module" not in paths or not others:
        return f"{name}: nothing to compare"
    size = feeds(given, paths["module"])
    for way in others:  # an exporter may fix what the other leaves free: time on what all of them take
        size = {key: value if value.size <= size[key].size else size[key] for key, value in feeds(given, paths[way]).items()}
    answers = {way: _answers(path, size) for way, path in paths.items()}
    for way in others:
        for a, b in zip(answers["module"], answers[way], strict=True):
            scale = max(float(np.abs(b).max()), 1e-6)
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * scale, err_msg=f"{name}: module and {way}")
    contenders: list[Any] = [
        (lambda path=paths[way]: timed_session(str(path), size, threads=threads, provider="cpu")) for way in ("module", *others)
    ]
    speeds: list[Speed] = race(contenders, threads=threads, max_seconds=seconds, precision=0.005)
    way, speed = min(zip(others, speeds, strict=True), key=lambda pair: pair[1].after_ms)
    same = same_runtime_graph(str(paths["module"]), str(paths[way]), threads=threads)
    ratio = f"{1 / speed.ratio:.3f} ({1 / speed.high:.3f} to {1 / speed.low:.3f})"
    counts = ", ".join(f"{key} {count}" for key, count in nodes.items())
    return (
        f"{name}: nodes {counts}; {speed.before_ms:.3f} ms beside {speed.after_ms:.3f} of {way}: {ratio}"
        f"{', = in the runtime' if same else ''}; {speed.pairs} pairs"
    )


def _answers(path: Path, size: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, dict(size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*RECIPES, *NETS])
    parser.add_argument("--small", action="store_true", help="recipes in their small variants")
    parser.add_argument("--dir", type=Path, help="where models are kept; a temporary folder without")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each model")
    parser.add_argument("--measure", action="store_true", help="runs measure, and decide by it, as `graphopt run` does without --no-bench")
    parser.add_argument("--make", action="store_true", help="make the models, and time nothing")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.dir or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in given.names:
            found = source(name, given.small)
            paths = made(name, found, folder, given.measure)
            if not given.make:
                print(compared(name, found, paths, given.threads, given.seconds), flush=True)


if __name__ == "__main__":
    main()
