"""Integers that are made into floats and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Editor, Match, Pattern, Refuse, Rewrite, constant_array, constant_tensor, guards, op, var


@dataclass(frozen=True)
class EliminateQuantizePairs(Rewrite):
    """Remove DequantizeLinear before QuantizeLinear with the same scale and zero point: (q - z) s / s + z is q, in float32 too."""

    name = "eliminate-quantize-pairs"

    def patterns(self) -> Sequence[Pattern]:
        return (op("QuantizeLinear", op("DequantizeLinear", var("q"), ..., bind="before"), ..., bind="after"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        before, after = match["before"], match["after"]
        guards.same_graph(before, after)
        scales = [_constant(node, 1) for node in (before, after)]
        if scales[0] is None or scales[1] is None:
            raise Refuse("a scale is not constant")
        guards.require(scales[0].dtype == np.float32 == scales[1].dtype, "the scales are not float32")
        guards.require(np.array_equal(*scales), "the scales differ")
        # Products of scale and integer neither overflow nor lose bits below the least normal number.
        wide = np.abs(scales[0].astype(np.float64))
        guards.require(bool((wide > np.finfo(np.float32).tiny).all() and (wide < 1e30).all()), "a scale is tiny or huge")
        stored = editor.context.dtype(match["q"])
        zeros = [_constant(node, 2) for node in (before, after)]
        given = [_zero(node) for node in (before, after)]
        guards.require(all((z is None) == (g is None) for z, g in zip(zeros, given)), "a zero point is not constant")
        types = [ir.DataType.UINT8 if zeros[1] is None else constant_tensor(given[1]).dtype, stored]  # type: ignore[union-attr]
        guards.require(types[0] == types[1] and types[0] in _EIGHT, "the integers are of different types, or wider than 8 bits")
        a, b = (np.zeros(1) if z is None else z.reshape(-1) for z in zeros)
        guards.require(np.array_equal(a, b) or (not a.any() and not b.any()), "the zero points differ")
        for name, default in (("axis", 1), ("block_size", 0), ("output_dtype", 0), ("saturate", 1)):
            values = [guards.attribute(node, name, default) for node in (before, after)]
            guards.require(values[0] == values[1] or (name == "axis" and scales[0].size == 1), f"{name} differs")
        editor.replace(after.outputs[0], match["q"])


_EIGHT = (ir.DataType.UINT8, ir.DataType.INT8)



def _zero(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _constant(node: ir.Node, place: int) -> np.ndarray | None:
    return constant_array(node.inputs[place]) if len(node.inputs) > place else None
