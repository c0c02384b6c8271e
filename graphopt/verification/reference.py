"""The reference: the original model with the runtime's optimizations off, and what it answers to samples.

It also says how far it is from itself, which is what a candidate may be off by without being wrong:

(a) *runtime noise*: its answer with the runtime's optimizations on, which fuse, reorder and change layouts;
(b) *rounding noise*: its answer when its floats are changed by about one rounding (see `perturb`).

(b) is a property of the function that the model computes; (a) is one of the runtime, which may itself be wrong. So (a)
counts only as far as (b) makes it plausible: up to RUNTIME_FACTOR times (b), where (b) is taken to be at least a few
eps. A runtime that answers nonsense with its optimizations on therefore excuses no candidate.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import runtime
from graphopt.errors import GraphoptError, InputError
from graphopt.verification import informative, perturb
from graphopt.verification.coverage import Coverage, measure
from graphopt.verification.metrics import CAP, difference, eps_of, is_float, leaves, per_channel, scale_of
from graphopt.verification.samples import Sample

#: How many times the rounding noise the runtime's own noise may be and still pass for rounding.
RUNTIME_FACTOR = 100.0
#: Rounding noise is taken to be at least this many eps of the output's scale.
_LEAST_EPS = 4.0
_CACHE_BYTES = 256_000_000


@dataclass(frozen=True)
class Noise:
    """How far one array of an output is from itself on one sample.

    absolute: float64, broadcasts to the array, what (a) and (b) come to together; flips: part of the elements of an
    integer, bool or string array that change; rounding, runtime: the largest of (b) and (a) over the scale (runtime as
    measured, before it is limited); unstable: shape or places of NaN change, so that nothing can be compared.
    """

    absolute: np.ndarray | float = 0.0
    flips: float = 0.0
    rounding: float = 0.0
    runtime: float = 0.0
    unstable: bool = False


@dataclass
class _Record:
    sample: Sample
    outputs: dict[str, Any] | None = None
    optimized: dict[str, Any] | None = None
    noise: dict[str, list[Noise]] | None = None
    repeat: dict[str, Any] | None = field(default=None)
    error: str = ""


class Reference:
    """One original model. Sessions are made when they are needed and one at a time, so that memory holds one model.

    Answers are kept for the samples they were asked for, up to a bound, which makes a bisection cheap.
    """

    def __init__(self, model: str | os.PathLike | bytes, *, threads: int = 0, provider: str = "cpu", seed: int = 0):
        """model: an ONNX file or the bytes of one; threads, provider: as in `runtime.session`; seed: of the noise.

        Reads the graph, not the weights. Raises InputError where neither onnx-ir nor the runtime reads it. What the
        runtime does not run, though the graph reads well, shows with the first run.
        """
        self.source, self.threads, self.provider, self.seed = model, threads, provider, seed
        self.optimized_error = ""
        self._session: Any = None
        self._kind = ""
        self.ranges: dict[str, tuple[float, float]] = {}
        self.independent: set[str] = set()
        self.eps = eps_of(np.dtype(np.float32))
        try:
            graph = perturb.load(model)
        except InputError:  # the runtime may still read it: it is compared then, with less known about its noise
            self.output_names = [o.name for o in self._get("off").get_outputs()]
        else:
            self.output_names = [v.name for v in graph.graph.outputs]
            self.ranges = informative.ranges(graph)
            self.independent = informative.independent(graph)
            self.eps = _coarsest(graph)
        self._random: set[tuple[str, int]] = set()  # (output, array in it) that differ when the same is run again
        self._shaken: bytes | bool | None = False  # False: not tried yet
        self._records: dict[int, _Record] = {}
        self._coverage: tuple[tuple[int, ...], Coverage] | None = None
        self._kept = 0

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs for feeds, optimizations off. Raises GraphoptError, one line, where the model does not run."""
        return runtime.run(self._get("off"), feeds)

    def outputs(self, sample: Sample) -> dict[str, Any]:
        """The outputs on a sample, optimizations off. Raises GraphoptError where the model does not run on it."""
        record = self._record(sample)
        if record.error:
            raise GraphoptError(record.error)
        if record.outputs is None:
            try:
                outputs = self.run(sample.feeds)
            except GraphoptError as error:
                record.error = str(error)
                raise
            if not self._keep(outputs):
                return outputs
            record.outputs = outputs
        return record.outputs

    def optimized(self, sample: Sample) -> dict[str, Any] | None:
        """The outputs with the runtime's optimizations on; None, and `optimized_error`, where it fails with them."""
        record = self._record(sample)
        if record.optimized is None:
            if self.optimized_error:
                return None
            try:
                record.optimized = runtime.run(self._get("on"), sample.feeds)
            except GraphoptError as error:
                self.optimized_error = str(error)
                return None
            self._keep(record.optimized)
        return record.optimized

    def noise(self, sample: Sample) -> dict[str, list[Noise]]:
        """The model's own noise on a sample: output -> one figure for each of its arrays (see `metrics.leaves`)."""
        record = self._record(sample)
        if record.noise is None:
            self.prepare([sample])
        return record.noise or {}

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Runs everything that `noise` needs for many samples, with each of the sessions made once.

        Samples on which the model does not run are passed over; `outputs` raises for those.
        """
        todo = []
        for sample in samples:
            record = self._record(sample)
            try:
                self.outputs(sample)
            except GraphoptError:
                continue
            if record.noise is None:
                todo.append(record)
        changed: dict[int, dict[str, Any] | None] = {}
        for number, record in enumerate(todo):
            feeds = perturb.perturbed(record.sample.feeds, self.eps, self.seed + number)
            changed[id(record)] = self._quietly("off", feeds) if feeds is not None else None
            # The same again: what differs then is drawn at random or depends on the order of threads.
            if number == 0:
                record.repeat = self._quietly("off", record.sample.feeds)
                self._find_random(record)
        if any(v is None for v in changed.values()) and self._shake() is not None:
            for record in todo:
                if changed[id(record)] is None:
                    changed[id(record)] = self._quietly("shaken", record.sample.feeds)
        for record in todo:
            optimized = self.optimized(record.sample)
            outputs = self.outputs(record.sample)
            record.noise = {
                name: self._noise(name, value, optimized, changed[id(record)], record.repeat) for name, value in outputs.items()
            }
            record.repeat = None

    def judged(self, samples: Sequence[Sample]) -> list[dict[str, str]]:
        """For each sample, why each output proves nothing on it: output -> reason, "" where it does prove something."""
        answers = [self.outputs(s) for s in samples]
        result = []
        for number, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
            others = [a for i, a in enumerate(answers) if i != number]
            if not any(_alike(answer, o) for o in others):
                probe = self._quietly("off", informative.altered(sample.feeds, self.seed))
                others = [*others, probe] if probe is not None else others
            result.append(informative.judge(answer, others, self.ranges, self.independent))
        return result

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

    def _record(self, sample: Sample) -> _Record:
        record = self._records.get(id(sample))
        if record is None or record.sample is not sample:
            record = self._records[id(sample)] = _Record(sample)
        return record

    def _find_random(self, record: _Record) -> None:
        """Remembers the outputs that a second run moves by more than any order of threads does."""
        if record.repeat is None:
            return
        for name, value in self.outputs(record.sample).items():
            again = leaves(record.repeat[name])
            for i, (_, array) in enumerate(leaves(value)):
                other = again[i][1] if i < len(again) else None
                if other is None or other.shape != array.shape:
                    self._random.add((name, i))
                elif is_float(array):
                    gap = difference(other, array)
                    if gap is None or float(gap.max(initial=0.0)) > CAP * scale_of(array):
                        self._random.add((name, i))
                elif np.any(other != array):
                    self._random.add((name, i))

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

    def _quietly(self, kind: str, feeds: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return runtime.run(self._get(kind), feeds)
        except GraphoptError:
            return None  # a figure less; that the model runs on the sample itself is known

    def _keep(self, outputs: Mapping[str, Any]) -> bool:
        size = sum(a.nbytes for v in outputs.values() for _, a in leaves(v))
        self._kept += size
        return self._kept <= _CACHE_BYTES

    def _noise(self, name: str, value: Any, optimized, changed, repeat) -> list[Noise]:
        span = self.ranges[name][1] - self.ranges[name][0] if name in self.ranges else 0.0
        others = [[array for _, array in leaves(o[name])] if o is not None else None for o in (optimized, changed, repeat)]
        return [
            Noise(unstable=True)
            if (name, i) in self._random
            else _leaf_noise(array, [o[i] if o is not None and i < len(o) else None for o in others], span, self.eps)
            for i, (_, array) in enumerate(leaves(value))
        ]


def _leaf_noise(b: np.ndarray, others: list[np.ndarray | None], span: float, eps: float) -> Noise:
    """Noise of one array; others: its values with optimizations on, with floats perturbed, and on a second run."""
    optimized, changed, repeat = others
    mine = [o for o in (changed, repeat) if o is not None]
    if not is_float(b):
        shaped = [o for o in [*mine, optimized] if o is not None and o.shape == b.shape]
        flips = max((np.count_nonzero(o != b) / max(b.size, 1) for o in shaped), default=0.0)
        return Noise(flips=float(flips), unstable=any(o.shape != b.shape for o in mine))
    scale = max(scale_of(b), span)
    gaps = [difference(o, b) if o.shape == b.shape and o.dtype == b.dtype else None for o in mine]
    if any(g is None for g in gaps):
        return Noise(unstable=True)
    floor = _LEAST_EPS * max(eps, eps_of(b.dtype)) * scale
    rounding = np.maximum.reduce([per_channel(g) for g in gaps]) if gaps else np.asarray(0.0)
    own = float(np.max(rounding, initial=0.0))
    gap = None
    if optimized is not None and optimized.dtype == b.dtype:
        gap = difference(optimized, b)
    together, measured = rounding, math.nan if optimized is None else math.inf
    if gap is not None:
        measured = float(gap.max(initial=0.0))
        together = np.maximum(rounding, np.minimum(per_channel(gap), RUNTIME_FACTOR * max(own, floor)))
    return Noise(together, 0.0, own / scale if scale else 0.0, measured / scale if scale else 0.0)


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all([x.shape for _, x in leaves(a[n])] == [y.shape for _, y in leaves(b[n])] for n in a)


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
