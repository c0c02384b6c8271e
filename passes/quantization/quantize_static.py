"""int8 by calibration: products on integers, with ranges that were seen on samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pass, Refuse, constant_tensor, guards, option

from .arithmetic import TOP, activation_grid, channel_axis, least_scale, pack_chosen
from .instructions import weight_top
from .regions import Unit, find_units
from .writing import Writer

#: What tells of a model that comes quantized.
QUANTIZED = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "QAttention",
)  # fmt: skip


@dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Run Conv, Gemm and MatMul with constant weights, and what stands between them, on 8-bit integers.

    Written as QuantizeLinear and DequantizeLinear pairs, of which the runtime makes integer kernels. Weights are
    symmetric, by output channel; activations have a zero point, and the range that the calibration samples show; biases
    are int32. Results that only float operators read stay in float where the runtime has a kernel for that.
    """

    name = "quantize-static"
    effect = Effect.LOSSY
    narrows = True
    calibrates = True

    method: str = option("mse", "how ranges are chosen", choices=("min-max", "moving-average", "percentile", "entropy", "mse"))
    granularity: str = option("channel", "one scale a channel of a weight or one a weight", choices=("channel", "tensor"))
    activations: str = option("auto", "integer type; auto: int8 on ARM, uint8 elsewhere", choices=("auto", "uint8", "int8"))
    reduce_range: str = option("auto", "weights in 7 bits; auto: where the target's sums could overflow", choices=("auto", "yes", "no"))

    def run(self, context: Context) -> None:
        units = find_units(context, self.granularity == "channel")
        if any(unit.anchor for unit in units):
            _Quantization(self, context, units).carry_out()
        else:
            context.log.note(_nothing(context))

    def signed(self, isa: str) -> bool:
        """Whether activations are int8."""
        return self.activations == "int8" or (self.activations == "auto" and isa.startswith("neon"))

    def top(self, isa: str, signed: bool) -> int:
        """The largest integer of a weight."""
        return weight_top(isa, signed, self.reduce_range)


def _nothing(context: Context) -> str:
    """Why there is nothing to quantize."""
    found = [f"{len(nodes)} {kind}" for kind in QUANTIZED if (nodes := context.index.of_types((kind,)))]
    stored = sum(_stores_integers(node) for node in context.index.of_types(("Cast",)))
    found += [f"{stored} Cast of weights stored as integers"] if stored else []
    if found:
        return f"the model is quantized already ({', '.join(found)}), and stays as it is"
    return "nothing to quantize: no Conv, Gemm or MatMul with constant weights that the runtime could run on integers"


def _stores_integers(node: ir.Node) -> bool:
    tensor = constant_tensor(node.inputs[0])
    return tensor is not None and tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8) and len(tensor.shape) >= 2


class _Quantization:
    """One run of the pass over one graph."""

    def __init__(self, options: QuantizeStatic, context: Context, units: list[Unit]) -> None:
        self.options, self.context, self.units = options, context, units
        isa = context.tools.target.isa if context.tools.target is not None else "unknown"
        self.signed = options.signed(isa)
        self.top = options.top(isa, self.signed)
        self.isa = isa
        self.writer = Writer(self.signed, self.top, options.granularity == "channel")
        self.grids = self.writer.grids
        self.weights: dict[ir.Value, tuple[ir.Value, np.ndarray]] = {}  # weight -> dequantized, scales
        self.nodes: set[ir.Node] = set()  # that were made here
        self.snr: list[tuple[float, str]] = []
        self.done = 0

    def carry_out(self) -> None:
        self._calibrate()
        self._leave_out()
        for unit in self.units:
            if not self.context.log.permit(unit.node):
                continue
            self.context.log.settled(unit.node)
            self._quantize(unit)
            self.done += unit.anchor
        if self.done:
            worst, beside = min(self.snr), self._beside()
            kind = "int8" if self.signed else "uint8"
            self.context.log.note(
                f"{self.done} products on integers, {kind} by {self.options.method}, weights in {8 if self.top == TOP else 7} bits for "
                f"{self.isa}; signal-to-noise ratio of the weights {worst[0]:.1f} dB at worst ({worst[1]})"
                + (f"; float operators that values are converted for: {beside}" if beside else "")
            )

    def _beside(self) -> str:
        """The float operators at which integers begin or end, by type, the most frequent first."""
        found: dict[ir.Node, None] = {}
        for value, before in self.writer.made.items():
            nodes = [None if before is None else before.producer(), *(usage.node for usage in value.uses())]
            found.update(dict.fromkeys(n for n in nodes if n is not None and n not in self.nodes))
        counts = Counter(node.op_type for node in found)
        return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def _calibrate(self) -> None:
        """The grid of every value that is to be rounded; units of values without one are refused."""
        wanted: dict[ir.Value, None] = {}
        for unit in self.units:
            wanted.update(dict.fromkeys(unit.calibrated))
        found = self.context.calibrate(wanted, method=self.options.method)
        faults: dict[ir.Value, str] = {}
        for value, statistics in found.items():
            if statistics.fault is not None:
                faults[value] = f"tensor {value.name!r} cannot be quantized: {statistics.fault}"
                continue
            self.grids[value] = activation_grid(*statistics.range(self.options.method), self.signed)
        for unit in self.units:
            reason = next((faults[v] for v in unit.calibrated if v in faults), None)
            if reason is None:
                reason = self._bias_fault(unit)
            if reason is not None and unit.anchor:
                self.context.log.refuse(unit.node, reason)
            unit.anchor, unit.fault = unit.anchor and reason is None, reason
        self.units = [unit for unit in self.units if unit.fault is None]

    def _bias_fault(self, unit: Unit) -> str | None:
        if not unit.anchor:
            return None
        tensor = constant_tensor(unit.node.inputs[1])
        assert tensor is not None
        try:
            guards.finite(tensor.numpy(), "the scales")
            if len(unit.node.inputs) > 2 and unit.node.inputs[2] is not None:
                guards.finite(guards.constant(unit.node.inputs[2], "the bias"), "the bias")
        except Refuse as refusal:
            return refusal.reason
        return None

    def _leave_out(self) -> None:
        """Units between anchors that a refusal left without an integer value to read, or without a reader."""
        while True:
            made = {v for u in self.units if u.rounded for v in u.outputs}
            read = {v for u in self.units for v in u.activations}
            kept = [u for u in self.units if u.anchor or (any(v in read for v in u.outputs) and all(v in made for v in u.activations))]
            if len(kept) == len(self.units):
                return
            self.units = kept

    # --- rewriting ----------------------------------------------------------------------------------------------

    def _quantize(self, unit: Unit) -> None:
        node, writer = unit.node, self.writer
        inner = unit.form.inner if unit.form is not None else ()
        editor = Editor(self.context, Match(node, [node, *([unit.tail] if unit.tail is not None else []), *inner]))
        writer.editor = editor
        inputs = list(node.inputs)
        for i in unit.inputs:
            inputs[i] = writer.rounded(inputs[i])  # type: ignore[arg-type]
        for i, data in unit.constants.items():
            inputs[i] = writer.constant(inputs[i], data)  # type: ignore[arg-type]
        if unit.anchor:
            inputs[1:] = self._constants(unit, inputs[0])  # type: ignore[arg-type]
        if unit.form is not None:
            results = [unit.form.write(writer, node, [inputs[i] for i in unit.inputs])]  # type: ignore[misc]
        else:
            made = editor.node(node.op_type, inputs, dict(node.attributes), outputs=len(unit.outputs), name=node.name or None,
                               like=node.outputs[0])  # fmt: skip
            results = made if isinstance(made, list) else [made]
        if unit.tail is not None:
            tail = unit.tail
            results = [editor.node(tail.op_type, [results[0], *tail.inputs[1:]], dict(tail.attributes), name=tail.name or None,
                                   like=unit.output)]  # fmt: skip
        for output, result in zip(unit.outputs, results, strict=True):
            if unit.rounded and result not in writer.made:
                grid = self.grids[inputs[unit.inputs[0]]] if unit.moves else self.grids[output]  # type: ignore[index]
                result = writer.pair(result, grid, output.name, like=output)
            editor.replace(output, result)
        self.nodes.update(editor.created)
        editor.commit()

    def _constants(self, unit: Unit, given: ir.Value) -> list[ir.Value | None]:
        """The weight, and the bias where there is one, dequantized."""
        node = unit.node
        weight, scale = self._weight(node.inputs[1])  # type: ignore[arg-type]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            return [weight]
        data = guards.constant(bias, "the bias")
        return [weight, self.writer.bias(data, self.grids[given].scale * np.atleast_1d(scale), bias.name)]

    def _weight(self, value: ir.Value) -> tuple[ir.Value, np.ndarray]:
        if value in self.weights:
            return self.weights[value]
        tensor = constant_tensor(value)
        assert tensor is not None
        axis, least = self._sharing(value, len(tensor.shape))
        packed, scale, snr = pack_chosen(value, axis, self.top, least)
        self.snr.append((snr, value.name or "?"))
        self.weights[value] = self.writer.weight(packed, scale, axis, value.name, like=value), scale
        return self.weights[value]

    def _sharing(self, value: ir.Value, rank: int) -> tuple[int | None, np.ndarray | None]:
        """The axis of a weight's channels, and the least scales with which all biases that are added to its products fit."""
        axis, least = None, None
        for unit in self.units:
            node = unit.node
            if not unit.anchor or len(node.inputs) < 2 or node.inputs[1] is not value:
                continue
            axis = channel_axis(node, 1, rank) if self.options.granularity == "channel" else None
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                bias = guards.constant(node.inputs[2], "the bias").reshape(-1)
                needed = least_scale(bias, self.grids[node.inputs[0]].scale)  # type: ignore[index]
                least = needed if least is None else np.maximum(least, needed)
        return axis, least
