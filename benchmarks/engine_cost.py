"""What optimizing costs, beside onnxsim, in one run: a chain model of 9,000 and of 45,000 nodes.

    python -m benchmarks.engine_cost [--repeat 3]

Whole processes are timed, interleaved: `graphopt run --verify off --no-bench` and, where it is installed, onnxsim.
Prints seconds (median of the runs, with all of them), nodes left, the ratio, and the growth from 9,000 to 45,000 nodes.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

from tests.chain import chain

LAYERS = (1000, 5000)
SIMPLIFY = "import sys, onnx, onnxsim; model, _ = onnxsim.simplify(onnx.load(sys.argv[1])); onnx.save(model, sys.argv[2])"


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each command")
    repeat = parser.parse_args().repeat
    peer = importlib.util.find_spec("onnxsim") is not None
    if not peer:
        print("onnxsim is not installed (pip install onnxsim): no ratio to it")
    with tempfile.TemporaryDirectory() as folder:
        times: dict[tuple[str, int], list[float]] = {}
        left: dict[tuple[str, int], int] = {}
        for layers in LAYERS:
            chain(layers, f"{folder}/{layers}.onnx")
        for _ in range(repeat):
            for layers in LAYERS:
                source = f"{folder}/{layers}.onnx"
                commands = {"graphopt": [sys.executable, "-m", "graphopt", "run", source, "-o", f"{folder}/graphopt.onnx", "--verify",
                                         "off", "--no-bench", "--quiet"]}
                if peer and layers == LAYERS[-1]:
                    commands["onnxsim"] = [sys.executable, "-c", SIMPLIFY, source, f"{folder}/onnxsim.onnx"]
                for name, command in commands.items():
                    times.setdefault((name, layers), []).append(seconds(command))
                    left[name, layers] = len(onnx.load(Path(folder) / f"{name}.onnx").graph.node)
    for (name, layers), all_times in times.items():
        runs = ", ".join(f"{t:.1f}" for t in all_times)
        print(f"{name:9} {9 * layers:6,} nodes: {statistics.median(all_times):6.1f} s ({runs}); {left[name, layers]:,} nodes left")
    small, large = (statistics.median(times["graphopt", layers]) for layers in LAYERS)
    print(f"45,000 over 9,000 nodes: {large / small:.2f} times as long")
    if peer:
        ratios = [b / a for a, b in zip(times["graphopt", LAYERS[-1]], times["onnxsim", LAYERS[-1]])]
        print(f"onnxsim takes {statistics.median(ratios):.1f} times as long ({', '.join(f'{r:.1f}' for r in ratios)})")


if __name__ == "__main__":
    main()
