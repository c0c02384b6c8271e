"""Modules in eager torch: as they are, exported, and exported after the foldings into weights, in one run.

    python -m benchmarks.torch_eager [recipe ...] [--size single] [--threads 1] [--seconds 20]

Batches of all three are timed in turn, under inference mode, rounds of fresh modules; the ratios are medians over
interleaved pairs with their intervals. Every answer is first compared with the module's.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from typing import Any

import torch

from graphopt.aten import Program, count_nodes
from graphopt.measurement import race
from graphopt.measurement.timing import Timed
from graphopt.model import Model
from graphopt.pipeline.presets import Pipeline
from graphopt.pipeline.runner import run_pipeline
from graphopt.programs.module import as_module
from models.recipes import RECIPES
from tests.support import REGISTRY

RECIPE_NAMES = ("repvgg_a0", "resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "unet")
PASSES = (
    "fold-pad", "fuse-conv-bn", "fold-affine", "fold-input-normalization", "merge-affine-chains", "merge-repvgg-branches",
    "merge-consecutive-convs", "merge-consecutive-matmuls", "prune-dead-nodes",
)  # fmt: skip


def folded(exported: Any) -> Program:
    """The program after the passes."""
    steps = [REGISTRY.get(name).configure() for name in PASSES]
    return run_pipeline(lambda: Model(Program(exported), kind="torch"), Pipeline.of("foldings", steps, 4)).model.graph


def timed(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Timed:
    module = copy.deepcopy(module)

    def call() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return Timed(call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPE_NAMES)
    parser.add_argument("--size", default="single")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each recipe")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {given.threads} threads, size {given.size}")
    for name in given.recipes:
        module, inputs = RECIPES[name].build(), tuple(RECIPES[name].example_inputs(size=given.size).values())
        exported = torch.export.export(module, inputs).run_decompositions({})
        program = folded(exported)
        made = [module, exported.module(), as_module(program.export())]
        with torch.inference_mode():
            for other in made[1:]:
                torch.testing.assert_close(other(*inputs), module(*inputs), rtol=1e-3, atol=1e-3)
        contenders = [lambda m=m: timed(m, inputs) for m in (made[2], made[0], made[1])]
        plain, before = race(contenders, threads=given.threads, max_seconds=given.seconds, precision=0.005)
        print(f"{name}: {count_nodes(Program(exported))} -> {count_nodes(program)} operators")
        print(f"  {plain.after_ms:8.2f} ms as a module, {before.after_ms:.2f} exported, {plain.before_ms:.2f} after the passes")
        print(f"  {_gain(plain)} over the module, {_gain(before)} over the exported program; {plain.pairs} pairs", flush=True)


def _gain(speed: Any) -> str:
    """How many times as fast the first contender is, from its time beside the other's."""
    return f"{1 / speed.ratio:.3f} ({1 / speed.high:.3f} to {1 / speed.low:.3f}) times as fast"


if __name__ == "__main__":
    main()
