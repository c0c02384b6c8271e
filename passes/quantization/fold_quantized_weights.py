"""Weights that are rounded each time the model runs, rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Editor, Match, Pattern, Refuse, Rewrite, const, constant_tensor, guards, op

_EIGHT = {ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255)}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FoldQuantizedWeights(Rewrite):
    """Store what QuantizeLinear makes of a constant, as training for quantization leaves it: 8 bits for 32."""

    name = "fold-quantized-weights"

    def patterns(self) -> Sequence[Pattern]:
        return (op("QuantizeLinear", const("x"), const("scale"), ..., bind="node"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node = match["node"]
        x, scale = (guards.float_constant(match[name], what, (ir.DataType.FLOAT,)) for name, what in (("x", "it"), ("scale", "the scale")))
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        tensor = constant_tensor(zero)
        if zero is not None and tensor is None:
            raise Refuse("the zero point is not constant")
        dtype = ir.DataType.UINT8 if tensor is None else tensor.dtype
        guards.require(dtype in _EIGHT, f"its result is {dtype.name}, not of 8 bits")
        guards.require(not guards.attribute(node, "block_size", 0), "its scales are by blocks")
        guards.require(tensor is not None or not guards.attribute(node, "output_dtype", 0), "its type is an attribute")
        guards.require(bool(np.isfinite(x).all()), "it is not finite everywhere")
        guards.require(bool((np.abs(scale) >= np.finfo(np.float32).tiny).all()), "a scale is zero or denormal")
        editor.replace(node.outputs[0], editor.constant(_rounded(x, scale, tensor, node, dtype), f"{match['x'].name}_{dtype.name.lower()}"))


def _rounded(x: np.ndarray, scale: np.ndarray, zero: ir.TensorProtocol | None, node: ir.Node, dtype: ir.DataType) -> np.ndarray:
    """As the operator has it: x / scale in float32, to the nearest even, plus the zero point, saturated."""
    shift = np.zeros(1, np.int32) if zero is None else zero.numpy().astype(np.int32)
    if scale.size > 1:
        axis = guards.attribute(node, "axis", 1)
        guards.require(-x.ndim <= axis < x.ndim and scale.shape == (x.shape[axis],), "its scales do not fit its shape")
        shape = [1] * x.ndim
        shape[axis] = -1
        scale, shift = scale.reshape(shape), shift.reshape(shape if shift.size > 1 else [1] * x.ndim)
    else:
        scale, shift = scale.reshape(()), shift.reshape(())
    low, high = _EIGHT[dtype]
    made = np.empty(x.shape, dtype.numpy())
    step = max(1, _CHUNK // max(1, x[0].size)) if x.ndim else 1
    if x.ndim == 0:
        return np.asarray(np.clip(np.rint(x / scale) + shift, low, high), dtype.numpy())
    for start in range(0, x.shape[0], step):
        part = slice(start, start + step)
        first = scale.ndim and scale.shape[0] > 1
        by, plus = (scale[part], shift[part] if shift.ndim and shift.shape[0] > 1 else shift) if first else (scale, shift)
        made[part] = np.clip(np.rint(x[part] / by) + plus, low, high)
    return made
