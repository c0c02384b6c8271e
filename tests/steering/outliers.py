"""A net that int8 breaks at one place: between two of its layers one channel is far larger than all others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.support import model, node

CHANNELS, LAYERS, LOUD = 16, 6, 2


def network() -> onnx.ModelProto:
    """float[1, 16, 12, 12] x -> float[1, 10] y; the result of layer LOUD has a channel that is 3000 times as large.

    One grid for that tensor leaves the other channels no step to stand on, and the next layer, which undoes the factor,
    hears only noise. In float the factor changes nothing.
    """
    r = np.random.default_rng(0)
    weights = {f"w{i}": r.standard_normal((CHANNELS, CHANNELS, 3, 3)) / np.sqrt(9 * CHANNELS) for i in range(LAYERS)}
    weights |= {f"b{i}": 0.1 * r.standard_normal(CHANNELS) for i in range(LAYERS)}
    weights[f"w{LOUD}"][0] *= 3000
    weights[f"b{LOUD}"][0] *= 3000
    weights[f"w{LOUD + 1}"][:, 0] /= 3000
    weights |= {"v": r.standard_normal((CHANNELS, 10)) / 4, "vb": np.zeros(10)}
    nodes, last = [], "x"
    for i in range(LAYERS):
        nodes += [node("Conv", [last, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]), node("Relu", [f"c{i}"], [f"r{i}"])]
        last = f"r{i}"
    nodes += [node("GlobalAveragePool", [last], ["p"]), node("Flatten", ["p"], ["f"]), node("Gemm", ["f", "v", "vb"], ["y"], name="head")]
    return model(nodes, {"x": [1, CHANNELS, 12, 12]}, {"y": [1, 10]}, {n: a.astype(np.float32) for n, a in weights.items()})


def write(folder: Path, *, seed: int = 1) -> Path:
    """The network as m.onnx and samples as data.npz in a folder; the path of the first."""
    onnx.save(network(), folder / "m.onnx")
    samples = np.random.default_rng(seed).standard_normal((20, 1, CHANNELS, 12, 12)).astype(np.float32)
    np.savez(folder / "data.npz", x=samples)
    return folder / "m.onnx"
