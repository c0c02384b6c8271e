"""The reference of an ONNX model: the original with the runtime's optimizations off."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import runtime
from graphopt.errors import InputError
from graphopt.verification import informative, perturb
from graphopt.verification.coverage import Coverage, measure
from graphopt.verification.metrics import eps_of
from graphopt.verification.original import Original, Way
from graphopt.verification.samples import Sample


class Reference(Original):
    """One original ONNX model. Sessions are made when they are needed and one at a time, so that memory holds one model."""

    def __init__(self, model: str | os.PathLike | bytes, *, threads: int = 0, provider: str = "cpu", seed: int = 0):
        """model: an ONNX file or the bytes of one; threads, provider: as in `runtime.session`; seed: of the noise.

        Reads the graph, not the weights. Raises InputError where neither onnx-ir nor the runtime reads it. What the
        runtime does not run, though the graph reads well, shows with the first run.
        """
        super().__init__(seed=seed)
        self.source, self.threads, self.provider = model, threads, provider
        self._session: Any = None
        self._kind = ""
        self._shaken: bytes | bool | None = False  # False: not tried yet
        self._coverage: tuple[tuple[int, ...], Coverage] | None = None
        try:
            graph = perturb.load(model)
        except InputError:  # the runtime may still read it: it is compared then, with less known about its noise
            self.output_names = [o.name for o in self._get("off").get_outputs()]
        else:
            self.output_names = [v.name for v in graph.graph.outputs]
            self.ranges = informative.ranges(graph)
            self.independent = informative.independent(graph)
            self.eps = _coarsest(graph)

    def run_as(self, way: Way, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return runtime.run(self._get(way), feeds)

    def has(self, way: Way) -> bool:
        return way in ("off", "on") or (way == "shaken" and self._shake() is not None)

    def coverage(self, samples: Sequence[Sample]) -> Coverage:
        """How much of the graph the samples exercise (see `coverage.measure`), kept for the same samples."""
        key = tuple(id(s) for s in samples)
        if self._coverage is None or self._coverage[0] != key:
            self.close()
            self._coverage = (key, measure(self.source, samples, threads=self.threads, provider=self.provider))
        return self._coverage[1]

    def close(self) -> None:
        """Lets go of the session, and with it of the weights in memory. The next run makes a new one."""
        self._session, self._kind = None, ""

    def _get(self, kind: str) -> Any:
        if self._kind != kind:
            self.close()
            source = self._shake() if kind == "shaken" else self.source
            self._session = runtime.session(source, optimize=kind == "on", threads=self.threads, provider=self.provider)
            self._kind = kind
        return self._session

    def _shake(self) -> bytes | None:
        if self._shaken is False:
            try:
                self._shaken = perturb.shaken(self.source, self.eps, self.seed)
            except (InputError, ValueError, OSError):  # unreadable as a graph, or too large for protobuf: a figure less
                self._shaken = None
        return self._shaken or None


def _coarsest(model: ir.Model) -> float:
    """The eps of the coarsest floats that the model computes in: its weights' and inputs' and outputs' dtypes.

    Weights stored in 8 bits or fewer are dequantized before they are computed with and do not count.
    """
    types = {v.dtype for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype is not None}
    for value in model.graph.initializers.values():
        if value.const_value is not None and len(value.const_value.shape) >= 1:
            types.add(value.const_value.dtype)
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and "value" in node.attributes and not node.attributes["value"].is_ref():
            types.add(node.attributes["value"].as_tensor().dtype)
        elif node.op_type == "Cast" and "to" in node.attributes and not node.attributes["to"].is_ref():
            types.add(ir.DataType(node.attributes["to"].as_int()))
    eps = [eps_of(t.numpy()) for t in types if t in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)]
    return max(eps, default=eps_of(np.dtype(np.float32)))
