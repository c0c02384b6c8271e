"""Weights rounded so that their errors cancel in what the layer gives, rather than each to the nearest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.model import ROUNDED
from graphopt.rewriting import Context, Effect, Pass, Refuse, constant_tensor, guards, is_sparse, option, same_domain
from graphopt.rewriting.rows import Rows

from .arithmetic import channel_axis, pack
from .instructions import weight_top
from .rounding import choose, damped, output_error

_TYPES = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class RoundAdaptively(Pass):
    """Choose, for each weight, the integer below or above with which a layer's outputs lose least, by its inputs' second moment.

    Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization". The graph stays as it is; the choices,
    for int8 weights with one scale a channel, wait for `quantize-static`.
    """

    name = "round-adaptively"
    effect = Effect.EXACT
    calibrates = True

    samples: int = option(64, "how many calibration samples are used, evenly spread; 0: all", minimum=0)
    longest: int = option(2304, "layers whose outputs are sums of more products are rounded to nearest", minimum=1)

    def run(self, context: Context) -> None:
        top = self._top(context)
        layers: dict[ir.Value, tuple[ir.Node, Rows]] = {}
        for node in context.model.graph:
            if node.op_type not in _TYPES or not same_domain(node.domain, "") or len(node.inputs) < 2:
                continue
            weight = node.inputs[1]
            tensor = constant_tensor(weight)
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or constant_tensor(node.inputs[0]) is not None or weight in layers:
                continue
            try:
                rows = Rows.of(node, tuple(tensor.shape.numpy()))
                guards.require(not is_sparse(tensor), "the weight is stored sparse")
                guards.require(rows.length <= self.longest, f"its outputs are sums of {rows.length} products (option longest)")
                guards.require(len({usage.node for usage in weight.uses()}) == 1, "its weight serves other layers too")  # type: ignore[union-attr]
            except Refuse as refusal:
                context.log.refuse(node, refusal.reason)
                continue
            layers[weight] = node, rows  # type: ignore[index]
        if not layers:
            return
        chosen = context.once((self, top), lambda: self._choose(layers, top, context))
        gains = []
        for weight, (node, _) in layers.items():
            found = chosen[weight.name]
            if isinstance(found, str):
                context.log.refuse(node, found)
            elif context.log.permit(node):
                context.log.settled(node)
                integers, scale, axis, gain = found
                weight.meta[ROUNDED] = integers, scale, axis
                gains.append(gain)
        if gains:
            fall = f"{np.median(gains):.1f} dB in the median"
            context.log.note(f"{len(gains)} weights rounded for their outputs, whose error falls by {fall}")

    def _top(self, context: Context) -> int:
        isa = context.tools.target.isa if context.tools.target is not None else "unknown"
        return weight_top(isa, isa.startswith("neon"))

    def _choose(self, layers: dict[ir.Value, tuple[ir.Node, Rows]], top: int, context: Context) -> dict[str | None, object]:
        """Of each weight by name: integers, scale, axis, and what is gained in dB; or why there is nothing."""
        by_rows: dict[Rows, list[ir.Value]] = {}
        for weight, (_, rows) in layers.items():
            by_rows.setdefault(rows, []).append(weight)
        found: dict[str | None, object] = {}
        for rows, moment in context.row_moments(by_rows, samples=self.samples or None):
            for weight in by_rows[rows]:
                node = layers[weight][0]
                try:
                    guards.require(moment is not None, f"tensor {rows.value!r} is not finite on the samples")
                    found[weight.name] = _layer(node, weight, moment, top)  # type: ignore[arg-type]
                except Refuse as refusal:
                    found[weight.name] = refusal.reason
        return found


def _layer(node: ir.Node, weight: ir.Value, moment: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray, int, float]:
    tensor = constant_tensor(weight)
    assert tensor is not None
    array = tensor.numpy()
    axis = channel_axis(node, 1, array.ndim)
    nearest, scale, _ = pack(tensor, axis, top)
    by_output = array if axis == 0 else array.T
    shape = len(moment), by_output.shape[0] // len(moment), -1
    units = by_output.reshape(by_output.shape[0], -1).astype(np.float64) / scale.astype(np.float64)[:, None]
    units = units.reshape(shape)
    integers = choose(units, moment, -top, top)
    before, after = (
        (output_error(q - units, damped(moment)) * scale.astype(np.float64).reshape(shape[:2]) ** 2).sum()
        for q in ((nearest if axis == 0 else nearest.T).reshape(shape), integers)
    )
    flat = integers.astype(np.int8).reshape(by_output.shape)
    gain = 10 * float(np.log10(before / after)) if after > 0 else 0.0
    return np.ascontiguousarray(flat if axis == 0 else flat.T), scale, axis, gain
