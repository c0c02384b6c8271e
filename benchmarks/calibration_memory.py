"""Peak resident memory of calibration beside that of a plain inference session, each in a process of its own.

    python -m benchmarks.calibration_memory model.onnx [--samples 500] [--method mse]

The session loads the model and runs it on one sample. Calibration takes statistics of every value that quantize-static
asks for, over samples that are made up one at a time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def sample(inputs: list[tuple[str, str, list]], seed: int) -> dict[str, np.ndarray]:
    """Seeded normal numbers, or small integers; free dimensions are 1, or 128 where there is no other."""
    rng, feeds = np.random.default_rng(seed), {}
    for name, kind, dims in inputs:
        shape = [d if isinstance(d, int) else 1 for d in dims]
        if len(shape) == 2 and not isinstance(dims[1], int):
            shape[1] = 128
        feeds[name] = rng.standard_normal(shape, dtype="f4") if "float" in kind else rng.integers(0, 2, shape)
    return feeds


def plain(path: str) -> None:
    """Run a session once, with the runtime alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, sample([(i.name, i.type, i.shape) for i in session.get_inputs()], 0))


def calibrated(path: str, count: int, method: str) -> None:
    """Take statistics over `count` samples of what quantize-static asks for."""
    from graphopt.passes.quantization.regions import find_units

    from graphopt.calibration import Calibration
    from graphopt.calibration.sources import Source
    from graphopt.formats import load_model
    from graphopt.rewriting import Context
    from graphopt.verification import Sample

    model = load_model(path).graph
    inputs = [(v.name, "float" if v.dtype.is_floating_point() else "int", list(v.shape.numpy() if v.shape.is_static() else
               [d if isinstance(d, int) else None for d in v.shape])) for v in model.graph.inputs]  # fmt: skip

    class Made(Source):
        description = "made-up samples"

        def __len__(self) -> int:
            return count

        def __iter__(self) -> Iterator[Sample]:
            return (Sample(sample(inputs, i), str(i)) for i in range(count))

    wanted = dict.fromkeys(v.name for unit in find_units(Context(model), True) for v in unit.calibrated)
    found = Calibration(Made(), threads=1).statistics(model, wanted, method=method)
    ranged = [s.range(method) for s in found.values() if s.fault is None]
    print(f"{len(ranged)} of {len(found)} tensors have a range")


def peak(arguments: list[str]) -> tuple[float, float]:
    """MB and seconds of this program, run as another process."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.calibration_memory", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--method", default="mse")
    parser.add_argument("--only", choices=("plain", "calibrated"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only == "plain":
        return plain(str(given.model))
    if given.only == "calibrated":
        return calibrated(str(given.model), given.samples, given.method)
    session, _ = peak([str(given.model), "--only", "plain"])
    taken, seconds = peak([str(given.model), "--only", "calibrated", "--samples", str(given.samples), "--method", given.method])
    print(f"{given.model.name}: session {session:.0f} MB, calibration of {given.samples} samples {taken:.0f} MB "
          f"({taken / session:.2f} times), {seconds:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
