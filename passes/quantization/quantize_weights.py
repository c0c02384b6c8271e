"""Weights stored as int8: a quarter of the bytes, dequantized when the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import (
    Context,
    Editor,
    Effect,
    Match,
    Pass,
    Refuse,
    constant_tensor,
    guards,
    is_sparse,
    option,
    remove_unused,
    same_domain,
    use_count,
)

from .arithmetic import channel_axis, pack_chosen

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store the weights of Conv, ConvTranspose, Gemm, MatMul and Gather as int8 behind a DequantizeLinear.

    Symmetric, w = scale * q with q in [-127, 127] and scale = max|w| / 127, by output channel. The weight of several
    operators is quantized once. Of a table that Gather reads, only the rows that were read are dequantized. It makes
    the file smaller, not the model faster: runtimes dequantize at every run. In a torch program linear layers on few rows are
    by torch's own kernel for such weights where that is faster.
    """

    name = "quantize-weights"
    effect = Effect.LOSSY
    kinds = frozenset({"onnx", "torch"})
    smaller = True
    before_export = False  # an ONNX model gets a DequantizeLinear

    min_elements: int = option(1024, "smallest number of elements of a weight that is quantized", minimum=1)
    granularity: str = option("channel", "one scale a channel or one a weight", choices=("channel", "tensor"))
    min_snr: float = option(0.0, "weights whose signal-to-noise ratio would be lower, in dB, stay as they are", minimum=0.0)

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import quantize_weights

        by_channel = self.granularity == "channel"
        quantize_weights.run(context, min_elements=self.min_elements, by_channel=by_channel, min_snr=self.min_snr)

    def run(self, context: Context) -> None:
        seen: set[ir.Value] = set()
        done: list[tuple[float, str, int, int]] = []
        for node in context.index.of_types(_TYPES):
            if node.graph is None or not same_domain(node.domain, ""):
                continue
            for place in _weight_inputs(node):
                value = node.inputs[place] if place < len(node.inputs) else None
                if value is None or value in seen or not self._is_weight(value):
                    continue
                seen.add(value)
                try:
                    result = self._quantize(value, node, place, context)
                except Refuse as refusal:
                    context.log.refuse(node, refusal.reason)
                    continue
                if result is not None:
                    done.append(result)
        if done:
            context.log.note(summary(done))

    def _is_weight(self, value: ir.Value) -> bool:
        """Whether a value is a weight at all: anything else is no match, and no refusal."""
        tensor = value.const_value if value.is_initializer() else constant_tensor(value)
        return tensor is not None and tensor.dtype in guards.FLOATS and len(tensor.shape) >= 2 and tensor.size >= self.min_elements

    def _quantize(self, value: ir.Value, node: ir.Node, place: int, context: Context) -> tuple[float, str, int, int] | None:
        """Quantize one weight: its signal-to-noise ratio, name, and bytes before and after; None: held back."""
        tensor = constant_tensor(value)
        if tensor is None:
            raise Refuse(f"the weight {value.name!r} is also a graph input, so a caller may override it")
        guards.require(not is_sparse(tensor), f"the weight {value.name!r} is stored sparse")
        guards.require(not value.is_graph_output(), f"the weight {value.name!r} is also a graph output")
        gathered = node.op_type == "Gather"
        axis = channel_axis(node, place, len(tensor.shape)) if self.granularity == "channel" else None
        uses = [(usage.node, usage.idx) for usage in value.uses()]
        for other, i in uses:
            if i not in _weight_inputs(other) or not same_domain(other.domain, "") or (other.op_type == "Gather") != gathered:
                raise Refuse(f"the weight {value.name!r} is also consumed by {other.op_type}")
            if gathered and guards.attribute(other, "axis", 0) not in (0, -len(tensor.shape)):
                raise Refuse("it does not read rows of the table")
            _guard_opset(context.opset(other, ""), tensor.dtype, axis)
        packed, scale, snr = pack_chosen(value, axis)
        size = packed.nbytes + scale.nbytes
        guards.require(size < tensor.nbytes, "the scales would take more than the weight saves")
        guards.require(snr >= self.min_snr, f"the signal-to-noise ratio would be {snr:.1f} dB")
        if not context.log.permit(node):
            return None
        context.log.settled(node)
        _store(context, value, packed, scale, axis, uses)
        return snr, value.name or "?", tensor.nbytes, size


def _store(
    context: Context, value: ir.Value, packed: np.ndarray, scale: np.ndarray, axis: int | None, uses: Sequence[tuple[ir.Node, int]]
) -> None:
    """Put int8 values and scales in the place of a weight."""
    constant, graph = value.producer(), value.graph
    assert graph is not None
    if constant is not None:
        anchor = constant
    elif len(uses) == 1 and uses[0][0].graph is graph:
        anchor = uses[0][0]
    else:
        anchor = next(iter(graph))  # in front of everything that may consume it, in subgraphs too
    editors = [Editor(context, Match(anchor, [node for node, _ in uses]))]
    stored = editors[0].constant(packed, f"{value.name}_int8")
    factor = editors[0].constant(scale, f"{value.name}_scale")
    attributes = {} if axis is None else {"axis": axis}
    if uses[0][0].op_type == "Gather":
        for node, _ in uses:
            editor = Editor(context, Match(node, [node]))
            rows = editor.node("Gather", [stored, *node.inputs[1:]], dict(node.attributes), name=node.name or None)
            # The scales belong to the columns, which stay the last axis however many axes the indices have.
            attributes = {} if axis is None else {"axis": -1}
            result = editor.node("DequantizeLinear", [rows, factor], attributes, name=f"{value.name}_dequantized", like=node.outputs[0])
            editor.replace(node.outputs[0], result)
            editors.append(editor)
    else:
        new = editors[0].node("DequantizeLinear", [stored, factor], attributes, name=f"{value.name}_dequantized", like=value)
        for node, i in uses:
            editors[0].set_input(node, i, new)
    for editor in editors:
        editor.commit()
    if not use_count(value) and value.is_initializer() and value.name in graph.initializers:
        graph.initializers.pop(value.name)
    elif constant is not None:
        remove_unused([constant], context)


def _weight_inputs(node: ir.Node) -> tuple[int, ...]:
    if node.op_type == "MatMul":
        return (0, 1)
    return (0,) if node.op_type == "Gather" else (1,) if node.op_type in _TYPES else ()


def _guard_opset(opset: int, dtype: ir.DataType, axis: int | None) -> None:
    """Refuse what DequantizeLinear cannot do at an opset."""
    guards.require(opset >= 10, f"opset {opset} has no DequantizeLinear (10 has)")
    guards.require(axis is None or opset >= 13, f"opset {opset} has no scale per channel (13 has); see the option granularity")
    guards.require(dtype != ir.DataType.DOUBLE, "DequantizeLinear does not give double precision")
    guards.require(dtype == ir.DataType.FLOAT or opset >= 19, f"DequantizeLinear does not give {dtype.name} at opset {opset} (19 does)")


def summary(done: Sequence[tuple[float, str, int, int]]) -> str:
    """What became of weights: their signal-to-noise ratio, name, and bytes before and after."""
    worst, ratios = min(done), sorted(d[0] for d in done)
    return (
        f"{len(done)} weights, {sum(d[2] for d in done)} bytes to {sum(d[3] for d in done)}; signal-to-noise ratio "
        f"{ratios[len(ratios) // 2]:.1f} dB in the median, {worst[0]:.1f} dB at worst ({worst[1]})"
    )
