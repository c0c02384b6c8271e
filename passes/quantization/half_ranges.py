"""Which operators would lose too much in float16, by what their tensors take on calibration samples.

float16 has 11 bits of precision between 2^-14 and 65504; below, it loses a bit with every halving, and 2^-24 is the last
number above zero (IEEE 754-2008, binary16).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, constant_tensor, guards, scalar_of

if TYPE_CHECKING:
    from graphopt.rewriting.context import Statistics

LARGEST = 65504.0
NORMAL = 2.0**-14
_EXACT = 2048.0  # whole numbers up to here are exact
_ANGLE = 8.0  # beyond, an angle in float16 is off by more than 1/256
_FEW = 4096  # elements of a reduced axis whose size is not known
_LOST = 2e-3  # of the norm of a constant that rounding may take; what is in range loses 3e-4
_CHUNK = 1 << 20

_MEANS = frozenset({"ReduceMean", "GlobalAveragePool", "AveragePool"})
_SQUARES = frozenset({"InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization", "LpNormalization"})
#: Operators whose answer hangs on the exact size of large inputs.
_STEPS = {"Sin": _ANGLE, "Cos": _ANGLE, "Floor": _EXACT, "Ceil": _EXACT, "Round": _EXACT, "Mod": _EXACT}
_CLIPS = ("Clip", "Max", "Min")


class Ranges:
    """What the tensors of a graph take, and what follows for its nodes.

    statistics: of the float32 tensors that are no constants. headroom: how many times as large as seen a value may get.
    """

    def __init__(self, context: Context, statistics: Mapping[ir.Value, Statistics], headroom: float) -> None:
        self.context, self.statistics, self.headroom = context, statistics, headroom
        self._constants: dict[ir.Value, str | None] = {}

    def objection(self, node: ir.Node) -> str | None:
        """Why a node should stay in float32; None: nothing speaks against float16."""
        context = self.context
        if node.op_type in ("Shape", "Size"):
            return None  # it reads no numbers
        for value in (*node.inputs, *node.outputs):
            if value is None or not value.name or context.dtype(value) != ir.DataType.FLOAT:
                continue
            reason = self._constant(node, value) if constant_tensor(value) is not None else self._tensor(value)
            if reason is not None:
                return reason
        if node.op_type == "ConstantOfShape":
            return self._of_shape(node)
        return self._denominator(node) or self._sum(node) or self._step(node)

    def _tensor(self, value: ir.Value) -> str | None:
        found = self.statistics.get(value)
        if found is None or not found.elements:
            return f"{value.name!r} had no elements in any calibration sample"
        if not math.isfinite(found.low):  # nothing but NaN and infinity, which float16 has too
            return None
        top = _top(found)
        if top * self.headroom > LARGEST:
            return f"{value.name!r} reaches {_signed(found)} on the calibration samples; float16 ends at 65,504"
        if 0 < top < 8 * NORMAL:
            return f"{value.name!r} stays below {top:.2g}, where float16 has few digits"
        return None

    def _constant(self, node: ir.Node, value: ir.Value) -> str | None:
        """Bounds beyond what float16 holds cut off nothing in it: they may become infinite."""
        if node.op_type in _CLIPS:
            number = scalar_of(value)
            if number is not None and abs(number) > LARGEST:
                return None
        if value not in self._constants:
            self._constants[value] = _loss(constant_tensor(value), value.name or "?")  # type: ignore[arg-type]
        return self._constants[value]

    def _of_shape(self, node: ir.Node) -> str | None:
        attribute = node.attributes.get("value")
        return None if attribute is None or attribute.is_ref() else _loss(attribute.as_tensor(), node.outputs[0].name or "?")

    def _denominator(self, node: ir.Node) -> str | None:
        place = {"Div": 1, "Reciprocal": 0, "Log": 0}.get(node.op_type)
        if node.op_type == "Pow" and (scalar_of(node.inputs[1]) or 0) < 0:
            place = 0
        if place is None or node.inputs[place] is None or constant_tensor(node.inputs[place]) is not None:
            return None
        value = node.inputs[place]
        found = self.statistics.get(value)  # type: ignore[arg-type]
        if found is None or not math.isfinite(found.low):
            return None
        least = found.low if found.low > 0 else -found.high if found.high < 0 else 0.0
        what = "its argument" if node.op_type == "Log" else "its denominator"
        return f"{what} {value.name!r} comes as close to zero as {least:.2g}" if least < NORMAL * self.headroom else None  # type: ignore[union-attr]

    def _sum(self, node: ir.Node) -> str | None:
        """What adds up may pass the largest number on its way to a result that is in range."""
        known = node.op_type in _MEANS or node.op_type in _SQUARES or node.op_type in ("ReduceSum", "ReduceL2")
        given, made = (self.statistics.get(v) for v in (node.inputs[0], node.outputs[0])) if known else (None, None)  # type: ignore[arg-type]
        if given is None or made is None or not (math.isfinite(given.low) and math.isfinite(made.low)):
            return None
        top, result = _top(given), _top(made)
        if node.op_type in _SQUARES:
            total = self._normalized(node) * top**2
        elif node.op_type == "ReduceL2":
            total = result**2
        elif node.op_type in _MEANS:
            total = self._added(node, given, made) * result
        else:  # with one sign, what is on the way is less than the sum, which is seen
            total = self._added(node, given, made) * top if given.low < 0 < given.high else result
        if total <= LARGEST:
            return None
        return f"what it adds up, numbers up to {top:.3g}, may come to {total:.3g} on the way; float16 ends at 65,504"

    def _added(self, node: ir.Node, given: Statistics, made: Statistics) -> int:
        """How many numbers go into one."""
        if node.op_type == "AveragePool":
            return math.prod(guards.attribute(node, "kernel_shape", ()))
        return max(1, given.elements // max(1, made.elements))

    def _normalized(self, node: ir.Node) -> int:
        """How many numbers are normalized by one factor, as far as shapes tell."""
        dims = self.context.dims(node.inputs[0])
        known = [d if isinstance(d, int) else _FEW for d in dims or ()]
        if not known:
            return _FEW
        if node.op_type == "LpNormalization":
            return known[guards.attribute(node, "axis", -1)]
        return math.prod(known[2 if node.op_type == "InstanceNormalization" else 1 :])

    def _step(self, node: ir.Node) -> str | None:
        whole = node.op_type == "Cast" and self.context.dtype(node.outputs[0]) not in (*guards.FLOATS, ir.DataType.BOOL)
        limit = _EXACT if whole else _STEPS.get(node.op_type)
        found = self.statistics.get(node.inputs[0]) if limit is not None else None  # type: ignore[arg-type]
        if found is None or not math.isfinite(found.low):
            return None
        top = _top(found)
        if top <= limit:  # type: ignore[operator]
            return None
        return f"it needs the exact size of numbers up to {top:.4g}"

    def exact(self, node: ir.Node) -> bool:
        """Whether the inputs of a node that stays in float32 must come from float32, too."""
        return self._step(node) is not None


def _top(found: Statistics) -> float:
    return max(abs(found.low), abs(found.high))


def _signed(found: Statistics) -> str:
    return f"{found.low if abs(found.low) > abs(found.high) else found.high:.4g}"


def _loss(tensor: ir.TensorProtocol, name: str) -> str | None:
    """What a constant would lose in float16, where that is more than its last digits; read in pieces."""
    data = tensor.numpy().reshape(-1)
    lost = norm = 0.0
    for start in range(0, data.size, _CHUNK):
        wide = data[start : start + _CHUNK].astype(np.float32)
        wide = wide[np.isfinite(wide)]
        top = float(np.abs(wide).max(initial=0.0))
        if top > LARGEST:
            return f"the constant {name!r} holds {top:.4g}; float16 ends at 65,504"
        rounded = wide.astype(np.float16).astype(np.float64)
        lost += float(((rounded - wide) ** 2).sum())
        norm += float((wide.astype(np.float64) ** 2).sum())
    if lost > _LOST**2 * norm:
        largest = float(np.abs(data).max())
        return f"the constant {name!r}, {largest:.2g} at most, would lose {100 * math.sqrt(lost / norm):.2g} % of itself in float16"
    return None
