"""What conversions cost where no candidate has them yet: each kind on each shape, by the runtime's own kernels.

In front of a kernel whose channels are the last axis the runtime also turns the narrow data round, and between a float
convolution in its blocked layout and anything else it reorders the float data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from graphopt import runtime
from graphopt.errors import InputError
from graphopt.measurement import Target
from graphopt.measurement.traces import time_kernels
from graphopt.placement import store

KINDS = ("quantize", "dequantize", "to-last", "from-last", "block", "unblock")
POOL = "max-pool"  # with its attributes behind it: see `pool`
_ELEMENTWISE = KINDS[:2]
_BLOCKED = "com.microsoft.nchwc"
_BATCH_BYTES = 64 << 20  # of inputs of one model
_LARGEST = 256 << 20  # elements
_SECONDS = 0.4  # for one model
_UNKNOWN_MS = 1e-3  # of a conversion that could not be measured: about what a kernel takes that does next to nothing


@dataclass
class Conversions:
    """Milliseconds of conversions on a target; what is not known is measured, and kept for other runs.

    Attributes:
        target: where.
        signed: whether the narrow numbers are int8 rather than uint8.
        measured: how many had to be measured.
    """

    target: Target
    signed: bool = False
    measured: int = 0
    _known: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)

    def ms(self, kind: str, shape: tuple[int, ...]) -> float:
        """Of one conversion that `measure` was told of."""
        return self._known.get(_case(kind, shape), 0.0)

    def measure(self, cases: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """See to it that the figures of these kinds on these shapes are known."""
        wanted = dict.fromkeys(_case(kind, shape) for kind, shape in cases if 0 < prod(shape) <= _LARGEST and _possible(kind, shape))
        missing = []
        for case in wanted:
            if case in self._known:
                continue
            kept = store.get(self._key(case))
            if isinstance(kept, int | float):
                self._known[case] = float(kept)
            else:
                missing.append(case)
        self.measured += len(missing)
        for batch in _batches(missing):
            for case, ms in zip(batch, self._time(batch), strict=True):
                self._known[case] = ms
                store.put(self._key(case), ms)

    def _key(self, case: tuple[str, tuple[int, ...]]) -> str:
        return store.key("conversion", *case, self.signed, self.target.to_dict(), runtime.version())

    def _time(self, cases: list[tuple[str, tuple[int, ...]]]) -> list[float]:
        model, feeds = _model(cases, self.signed)
        try:
            (timing,) = time_kernels(
                [model], feeds, threads=self.target.threads, provider=self.target.provider, optimize=False, seconds=_SECONDS
            )
        except InputError:  # a runtime without one of these kernels
            return [_UNKNOWN_MS] if len(cases) == 1 else [ms for case in cases for ms in self._time([case])]
        return [timing.ms.get(f"case{i}") or _UNKNOWN_MS for i in range(len(cases))]


def _case(kind: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """To the kernels that go number by number only how many there are matters."""
    return (kind, (prod(shape),)) if kind in _ELEMENTWISE else (kind, tuple(shape))


def _possible(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether the runtime would ever do that: it turns round pictures alone, and blocks channels by fours at the least."""
    return kind in _ELEMENTWISE or (len(shape) == 4 and (kind not in ("block", "unblock") or shape[1] % 4 == 0))


def pool(attributes: Mapping[str, Any]) -> str:
    """The kind of a MaxPool on narrow numbers whose channels are not the last axis.

    That is what the runtime makes of one between a float operator and a unit on integers: it quantizes before it. Its
    kernel for that is many times slower than the one for channels that are the last axis.
    """
    return f"{POOL} {json.dumps({k: attributes[k] for k in sorted(attributes)})}"


def _batches(cases: list[tuple[str, tuple[int, ...]]]) -> list[list[tuple[str, tuple[int, ...]]]]:
    batches: list[list[tuple[str, tuple[int, ...]]]] = []
    room = 0
    for case in sorted(cases):
        size = 4 * prod(case[1])
        if not batches or size > room:
            batches.append([])
            room = _BATCH_BYTES
        batches[-1].append(case)
        room -= size
    return batches


def _model(cases: list[tuple[str, tuple[int, ...]]], signed: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    """A model with one conversion for each case, and its inputs.

    Results end in the runtime's own memory, as they do inside a model: all that leaves it is their shape.
    """
    from onnx import TensorProto, helper, numpy_helper

    narrow, narrow_type = (np.int8, TensorProto.INT8) if signed else (np.uint8, TensorProto.UINT8)
    rng = np.random.default_rng(0)
    nodes, inputs, outputs, feeds = [], [], [], {}
    for i, (kind, shape) in enumerate(cases):
        name, result, channels = f"x{i}", f"y{i}", shape[1] if len(shape) > 1 else 0
        if kind in ("quantize", "block", "unblock"):
            if kind == "unblock":
                shape = (shape[0], -(-channels // _block()) * _block(), *shape[2:])
            feeds[name] = rng.standard_normal(shape, np.float32)
        elif kind == "from-last":
            feeds[name] = rng.integers(0, 100, (shape[0], *shape[2:], channels)).astype(narrow)
        else:
            feeds[name] = rng.integers(0, 100, shape).astype(narrow)
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT if feeds[name].dtype == np.float32 else narrow_type, shape
                                                    if kind != "from-last" else feeds[name].shape))  # fmt: skip
        nodes.append(_node(kind, name, result, f"case{i}", len(shape), channels))
        nodes.append(helper.make_node("Shape", [result], [f"s{i}"]))
        outputs.append(helper.make_tensor_value_info(f"s{i}", TensorProto.INT64, None))
    constants = [numpy_helper.from_array(np.float32(0.05), "scale"), numpy_helper.from_array(np.asarray(3, narrow), "zero")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_BLOCKED, 1)]
    graph = helper.make_graph(nodes, "conversions", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString(), feeds


def _node(kind: str, name: str, result: str, label: str, rank: int, channels: int) -> Any:
    from onnx import helper

    if kind in ("quantize", "dequantize"):
        operator = "QuantizeLinear" if kind == "quantize" else "DequantizeLinear"
        return helper.make_node(operator, [name, "scale", "zero"], [result], label)
    if kind == "block":
        return helper.make_node("ReorderInput", [name], [result], label, domain=_BLOCKED)
    if kind == "unblock":
        return helper.make_node("ReorderOutput", [name], [result], label, domain=_BLOCKED, channels=channels)
    if kind.startswith(POOL):
        return helper.make_node("MaxPool", [name], [result], label, **json.loads(kind.removeprefix(POOL)))
    last = [0, *range(2, rank), 1]
    return helper.make_node("Transpose", [name], [result], label, perm=last if kind == "to-last" else list(np.argsort(last)))


def _block() -> int:
    """Channels of a block of the runtime's blocked layout: a multiple of what any instruction set takes."""
    return 16
