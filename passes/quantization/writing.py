"""Values on grids, as a quantizing pass writes them: QuantizeLinear and DequantizeLinear pairs, weights, biases."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Editor

from .arithmetic import Grid, activation_grid, pack_bias


class Writer:
    """What is on a grid in one graph, and how more comes to be. `editor` takes the nodes: that of the unit at hand.

    Attributes:
        signed: whether activations are int8; uint8 otherwise.
        top: the largest integer of a weight.
        per_channel: whether a weight has one scale a channel.
        grids: of values as they were, and of what stands for them now.
        made: what stands for values on their grids -> the float value that was rounded, or None where there was none.
    """

    editor: Editor

    def __init__(self, signed: bool, top: int, per_channel: bool) -> None:
        self.signed, self.top, self.per_channel = signed, top, per_channel
        self.grids: dict[ir.Value, Grid] = {}
        self.made: dict[ir.Value, ir.Value | None] = {}
        self._rounded: dict[ir.Value, ir.Value] = {}  # value -> the same, rounded to its grid
        self._constants: dict[ir.Value, ir.Value] = {}

    def rounded(self, value: ir.Value) -> ir.Value:
        """A value on its grid; the pair is made where it is first needed."""
        if value in self.made:
            return value
        if value not in self._rounded:
            self._rounded[value] = self.pair(value, self.grids[value], value.name, like=value)
        return self._rounded[value]

    def pair(self, value: ir.Value, grid: Grid, name: str | None, *, like: ir.Value | None = None) -> ir.Value:
        """A value, rounded to a grid."""
        constants = self._parameters(grid, name)
        stored = self.editor.node("QuantizeLinear", [value, *constants], name=f"{name}_quantized")
        return self._dequantized(stored, constants, grid, name, value, like)

    def integers(self, value: ir.Value, grid: Grid, name: str | None) -> ir.Value:
        """The integers that stand for a value on a grid."""
        return self.editor.node("QuantizeLinear", [value, *self._parameters(grid, name)], name=f"{name}_quantized")

    def read(self, stored: ir.Value, grid: Grid, name: str | None, *, like: ir.Value | None = None) -> ir.Value:
        """Integers, read as what they stand for on a grid."""
        return self._dequantized(stored, self._parameters(grid, name), grid, name, None, like)

    def _parameters(self, grid: Grid, name: str | None) -> list[ir.Value]:
        constant = self.editor.constant
        return [constant(grid.scale, f"{name}_scale"), constant(grid.zero, f"{name}_zero_point")]

    def _dequantized(self, stored: ir.Value, constants: list[ir.Value], grid: Grid, name: str | None, before: Any, like: Any) -> ir.Value:
        result = self.editor.node("DequantizeLinear", [stored, *constants], name=f"{name}_dequantized", like=like)
        self.grids[result] = grid
        self.made[result] = before
        return result

    def stored(self, value: ir.Value) -> ir.Value:
        """The integers behind a value that is on a grid."""
        return value.producer().inputs[0]  # type: ignore[union-attr, return-value]

    def number(self, integer: int) -> np.ndarray:
        """An integer of 0 to 255, as activations are stored."""
        return np.asarray(integer - 128, np.int8) if self.signed else np.asarray(integer, np.uint8)

    def constant(self, value: ir.Value, data: np.ndarray) -> ir.Value:
        """A constant as an activation, on a grid over its own range."""
        if value not in self._constants:
            self._constants[value] = self.constant_array(data, value.name)
        return self._constants[value]

    def constant_array(self, data: np.ndarray, name: str | None) -> ir.Value:
        """An array as an activation, on a grid over its own range."""
        grid = activation_grid(min(0.0, float(data.min())), max(0.0, float(data.max())), self.signed)
        limits = np.iinfo(grid.zero.dtype)
        packed = np.clip(np.rint(data / grid.scale.astype(np.float64)) + grid.zero, limits.min, limits.max).astype(grid.zero.dtype)
        return self.read(self.editor.constant(packed, f"{name}_{packed.dtype.name}"), grid, name)

    def weight(
        self, packed: np.ndarray, scale: np.ndarray, axis: int | None, name: str | None, *, like: ir.Value | None = None
    ) -> ir.Value:  # fmt: skip
        """int8 values of a weight, dequantized."""
        return self._fixed(packed, scale, axis, name, like)

    def bias(self, data: np.ndarray, scale: np.ndarray, name: str | None) -> ir.Value:
        """A bias of one number a channel, on the scale of the products that it is added to, dequantized."""
        data, scale = data.reshape(-1), np.asarray(scale, np.float32)
        return self._fixed(pack_bias(data, scale), scale if scale.size > 1 else scale.reshape(()), 0, name, None)

    def _fixed(self, packed: np.ndarray, scale: np.ndarray, axis: int | None, name: str | None, like: ir.Value | None) -> ir.Value:
        constant, kind = self.editor.constant, packed.dtype
        inputs = [
            constant(packed, f"{name}_{kind.name}"), constant(scale, f"{name}_scale"),
            constant(np.zeros(scale.shape, kind), f"{name}_zero_point"),
        ]  # fmt: skip
        attributes = {"axis": axis} if scale.ndim else {}
        return self.editor.node("DequantizeLinear", inputs, attributes, name=f"{name}_dequantized", like=like)
