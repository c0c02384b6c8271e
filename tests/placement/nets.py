"""Networks with units that win and lose on integers, candidates of them, and clocks that say which."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.calibration import Calibration
from graphopt.formats import save_model
from graphopt.measurement import Target
from graphopt.measurement.traces import Timing, final_kernels
from graphopt.model import Model
from graphopt.pipeline.presets import Pipeline
from graphopt.pipeline.runner import Candidate, Hold, run_pipeline
from graphopt.rewriting.context import Tools
from tests.support import REGISTRY, array, model, node

TARGET = Target("cpu", "a machine for tests", 1, "avx512-vnni")
SHAPE = (1, 8, 12, 12)


def mixed() -> onnx.ModelProto:
    """Two Convs with float operators around them, a chain of three with a Relu and an Add, and a Gemm with a float result."""
    nodes = [
        node("Conv", ["x", "w0"], ["lone"], pads=[1] * 4), node("Elu", ["lone"], ["e0"]), node("Conv", ["e0", "w1"], ["two"]),
        node("Elu", ["two"], ["e1"]), node("Conv", ["e1", "w2"], ["a"], pads=[1] * 4), node("Relu", ["a"], ["ra"]),
        node("Conv", ["ra", "w3"], ["b"], pads=[1] * 4), node("Add", ["b", "ra"], ["s"]), node("Conv", ["s", "w4"], ["c"], pads=[1] * 4),
        node("Elu", ["c"], ["e2"]), node("ReduceMean", ["e2"], ["m"], axes=[2, 3], keepdims=0), node("Gemm", ["m", "w5"], ["g"]),
        node("Exp", ["g"], ["y"]),
    ]  # fmt: skip
    weights = {f"w{i}": array(8, 8, *((1, 1) if i == 1 else (3, 3)), seed=i) / 8 for i in range(5)} | {"w5": array(8, 8, seed=5)}
    return model(nodes, {"x": SHAPE}, {"y": None}, weights)


class Bench:
    """Candidates of a network under passes, in a folder."""

    def __init__(self, proto: onnx.ModelProto, folder: Path, *names: str) -> None:
        self.model = Model.from_ir(ir.from_proto(proto))
        self.folder = folder
        self.pipeline = Pipeline.of("test", [REGISTRY.get(name)() for name in names or ("quantize-static",)])
        samples = [array(*SHAPE, seed=80 + i) for i in range(4)]
        self.tools = Tools(Calibration.open(samples, self.model.graph), TARGET)
        self.built: list[Hold] = []

    def build(self, hold: Hold | None = None) -> Candidate:
        self.built.append(hold or Hold())
        return run_pipeline(self.model.fresh, self.pipeline, hold=hold, tools=self.tools)

    def keep(self, candidate: Candidate) -> Path:
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "m.onnx"
        save_model(candidate.model, path)
        return path

    def feeds(self) -> Mapping[str, Any]:
        return {"x": np.zeros(SHAPE, np.float32)}

    def tell(self, text: str) -> None: ...


def clock(ms: Callable[[Any], float], taken: list[int] | None = None) -> Callable[..., list[Timing]]:
    """What stands for `time_kernels`: milliseconds by kernel, over the graphs that the runtime really makes."""

    def time_kernels(paths: Sequence[str | os.PathLike], feeds: Any, **options: Any) -> list[Timing]:
        if taken is not None:
            taken.append(len(paths))
        found = []
        for path in paths:
            kernels = final_kernels(path, threads=1)
            narrow = {name for k in kernels if k.operator == "QuantizeLinear" or "QLinear" in k.operator for name in k.outputs}
            times = {k.name: ms(k) for k in kernels}
            types = {k.name: frozenset({"uint8"} if narrow.intersection((*k.inputs, *k.outputs)) else {"float"}) for k in kernels}
            found.append(Timing(times, {}, types, sum(times.values())))
        return found

    return time_kernels
