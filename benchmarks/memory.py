"""Peak resident memory of `graphopt run` on a model of 3 GB of external weights, under two presets.

    python -m benchmarks.memory [--gigabytes 3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

SIZE = 4096


def write(folder: Path, count: int) -> None:
    """A chain of `count` MatMul, Identity, Relu with 64 MB of seeded float32 weights each, in one data file."""
    weights, nodes, x = [], [], "x"
    with open(folder / "w.bin", "wb") as data:
        for i in range(count):
            offset = data.tell()
            data.write(np.random.default_rng(i).standard_normal(SIZE * SIZE, dtype="f4").tobytes())
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[SIZE, SIZE], data_location=TensorProto.EXTERNAL)
            for key, value in (("location", "w.bin"), ("offset", str(offset)), ("length", str(4 * SIZE * SIZE))):
                tensor.external_data.add(key=key, value=value)
            weights.append(tensor)
            nodes += [helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"]), helper.make_node("Identity", [f"m{i}"], [f"i{i}"]),
                      helper.make_node("Relu", [f"i{i}"], [f"r{i}"])]
            x = f"r{i}"
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "big", [info("x", 1, ["n", SIZE])], [info(x, 1, ["n", SIZE])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    count = max(1, round(parser.parse_args().gigabytes * 2**30 / (4 * SIZE * SIZE)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, count)
        weights = count * 4 * SIZE * SIZE / 2**20
        for preset in ("clean", "default"):
            target = folder / preset / "model.onnx"
            target.parent.mkdir()
            command = [sys.executable, "-m", "graphopt", "run", str(folder / "model.onnx"), "-o", str(target), "--preset", preset,
                       "--verify", "off", "--no-bench", "--quiet"]
            started = time.perf_counter()
            process = subprocess.Popen(command)
            _, status, usage = os.wait4(process.pid, 0)
            took = time.perf_counter() - started
            if status:
                raise SystemExit(f"graphopt ended with status {os.waitstatus_to_exitcode(status)}")
            peak = usage.ru_maxrss / 1024
            print(f"{preset:8}: peak {peak:6.0f} MB for {weights:.0f} MB of weights ({peak / weights:.2f} times), {took:.1f} s")


if __name__ == "__main__":
    main()
