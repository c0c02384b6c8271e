"""Activations that were quantized as int8, as uint8: the same numbers, for which the runtime has kernels on x86."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pass, constant_array, constant_tensor, same_domain

from .instructions import EXACT

_LARGEST = 1 << 16  # bytes of a constant that is an activation
_OPERANDS = frozenset({"Add", "Mul", "Concat"})


@dataclass(frozen=True)
class ActivationsToUint8(Pass):
    """Store activations that are int8 between QuantizeLinear and DequantizeLinear as uint8, with zero points 128 higher.

    ONNX Runtime's kernels on x86 take unsigned activations: of a model with signed ones (what its own quantizer writes unless
    told otherwise) most stays in float. Only where sums of products of unsigned and signed bytes cannot overflow.
    """

    name = "activations-to-uint8"
    effect = Effect.EXACT
    providers = frozenset({"cpu"})

    def run(self, context: Context) -> None:
        target = context.tools.target
        if target is None or target.isa.startswith("neon") or target.isa not in EXACT:
            return
        for node in context.index.of_types(("QuantizeLinear",)):
            if same_domain(node.domain, "") and _signed(node, context):
                self._shift(context, node)
        for node in context.index.of_types(("DequantizeLinear",)):
            if _constant_operand(node):
                self._shift_constant(context, node)

    def _shift(self, context: Context, node: ir.Node) -> None:
        value = node.outputs[0]
        readers = list(dict.fromkeys(usage.node for usage in value.uses()))
        fault = _fault(value, node, readers)
        if fault is not None:
            context.log.refuse(node, fault)
        elif context.log.permit(node):
            context.log.settled(node)
            editor = Editor(context, Match(node, []))
            zero = editor.constant(_unsigned(constant_array(node.inputs[2])), f"{value.name}_zero_point")
            for reader in (node, *readers):
                editor.set_input(reader, 2, zero)
            editor.set_attribute(node, "output_dtype", None)
            editor.commit()
            value.type = ir.TensorType(ir.DataType.UINT8)

    def _shift_constant(self, context: Context, node: ir.Node) -> None:
        if context.log.permit(node):
            editor = Editor(context, Match(node, []))
            zero = np.int8(0) if _zero(node) is None else constant_array(node.inputs[2])
            editor.set_input(node, 0, editor.constant(_unsigned(constant_array(node.inputs[0])), f"{node.inputs[0].name}_uint8"))
            editor.set_input(node, 2, editor.constant(_unsigned(zero), f"{node.inputs[0].name}_zero_point"))
            editor.commit()


def _signed(node: ir.Node, context: Context) -> bool:
    tensor = constant_tensor(_zero(node))
    return tensor is not None and tensor.dtype == ir.DataType.INT8


def _zero(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _fault(value: ir.Value, node: ir.Node, readers: list[ir.Node]) -> str | None:
    """Why the integers of a value must stay what they are."""
    if value.is_graph_output():
        return f"its integers {value.name!r} are a graph output"
    zero = constant_array(node.inputs[2])
    for reader in readers:
        if reader.op_type != "DequantizeLinear" or not same_domain(reader.domain, "") or reader.graph is not node.graph:
            return f"its integers {value.name!r} are also read by {reader.op_type}"
        other = constant_array(_zero(reader))
        if other is None or other.dtype != np.int8 or other.shape != zero.shape or (other != zero).any():
            return f"its integers {value.name!r} are read with another zero point"
    return None


def _constant_operand(node: ir.Node) -> bool:
    """Whether a DequantizeLinear reads a small constant of int8 with one scale, which only sums and the like take."""
    tensor = constant_tensor(node.inputs[0])
    if not same_domain(node.domain, "") or tensor is None or tensor.dtype != ir.DataType.INT8 or tensor.nbytes > _LARGEST:
        return False
    scale, zero = constant_tensor(node.inputs[1]), _zero(node)
    if scale is None or scale.size != 1 or (zero is not None and constant_tensor(zero) is None):
        return False
    readers = [usage.node for usage in node.outputs[0].uses()]
    return bool(readers) and all(n.op_type in _OPERANDS for n in readers) and not node.outputs[0].is_graph_output()


def _unsigned(array: np.ndarray) -> np.ndarray:
    return np.asarray(np.asarray(array).astype(np.int16) + 128, np.uint8)
