"""What dynamically quantized operators share: weights that are packed once, and inputs that are rounded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Refuse, constant_tensor, guards, is_sparse

from .arithmetic import pack_array, pack_chosen
from .instructions import LONGEST_SUM

#: States the integer operator through an editor.
Plan = Callable[[Editor], None]
#: The int8 values and the scales of a tensor, by channel or not, with a largest integer; and the signal-to-noise ratio in dB.
Packing = Callable[[ir.Value, bool, int], tuple[np.ndarray, np.ndarray, float]]

_DEEP = 8  # operators between a weight and the constants that it is computed from


@dataclass
class Dynamic:
    """One run of the pass over one model.

    Attributes:
        top: the largest integer of a weight.
        by_channel: one scale a channel.
        least: by operator, and of all others: the smallest weight that is worth it.
        rounded: (graph, value) -> the value as uint8, its scale, its zero point.
        snr: of each weight that was packed, in dB, and its name.
        between: products of two computed values that were met.
    """

    top: int
    by_channel: bool
    least: dict[str, int]
    least_of_others: int
    rounded: dict[tuple[ir.Graph, ir.Value], tuple[ir.Value, ir.Value, ir.Value]] = field(default_factory=dict)
    snr: list[tuple[float, str]] = field(default_factory=list)
    between: int = 0
    _packed: dict[tuple[ir.Graph, ir.Value, Packing], tuple[ir.Value, np.ndarray]] = field(default_factory=dict)
    _scales: dict[tuple[ir.Value, float], ir.Value] = field(default_factory=dict)

    def input(self, editor: Editor, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """A value as uint8, its scale and its zero point, by a DynamicQuantizeLinear that all that read it in a graph share."""
        key = editor.match.root.graph, value
        if key not in self.rounded:
            self.rounded[key] = tuple(editor.node("DynamicQuantizeLinear", [value], outputs=3, name=f"{value.name}_quantized"))
        return self.rounded[key]

    def weight(self, editor: Editor, value: ir.Value, pack: Packing, factor: float = 1.0) -> tuple[ir.Value, ir.Value]:
        """A weight as int8, and its scales times a factor; stored once for all in a graph that read it alike."""
        key = editor.match.root.graph, value, pack
        if key not in self._packed:
            packed, scale, snr = pack(value, self.by_channel, self.top)
            self._packed[key] = editor.constant(packed, f"{value.name}_int8"), scale
            self.snr.append((snr, value.name or "?"))
        stored, scale = self._packed[key]
        if (stored, factor) not in self._scales:
            self._scales[stored, factor] = editor.constant(np.asarray(scale * np.float32(factor), np.float32), f"{value.name}_scale")
        return stored, self._scales[stored, factor]

    def guard_weight(
        self, node: ir.Node, place: int, rank: int, what: str = "the weight", least: int | None = None
    ) -> ir.TensorProtocol | None:
        """The tensor of a constant weight that can be packed; None: it is no weight."""
        value = node.inputs[place]
        assert value is not None
        tensor = constant_tensor(value)
        if tensor is None:
            if value.is_initializer() and value.dtype in guards.FLOATS:
                raise Refuse(f"{what} {value.name!r} is also a graph input, so a caller may override it")
            maker = _computed(value)
            if maker is not None and maker.op_type == "DequantizeLinear":
                raise Refuse(f"{what} {value.name!r} is stored in an integer type already")
            if maker is not None:
                raise Refuse(f"{what} {value.name!r} is computed by {maker.op_type} of constants that were not folded")
            return None
        guards.require(tensor.dtype == ir.DataType.FLOAT, f"{what} is {tensor.dtype.name}, not float32")
        guards.require(not is_sparse(tensor), f"{what} is stored sparse")
        shape = tuple(tensor.shape.numpy())
        guards.require(len(shape) == rank, f"{what} has {len(shape)} dimensions, not {rank}")
        least = least or self.least.get(node.op_type, self.least_of_others)
        guards.require(tensor.size > 0, f"{what} has no elements")
        small = f"{what} has {tensor.size} elements; below {least} rounding the input costs more than it gains"
        guards.require(tensor.size >= least, small)
        _guard_finite(tensor, what)
        return tensor


def by_columns(value: ir.Value, by_channel: bool, top: int) -> tuple[np.ndarray, np.ndarray, float]:
    """A weight of [inputs, channels]."""
    return pack_chosen(value, 1 if by_channel else None, top)


def by_rows(value: ir.Value, by_channel: bool, top: int) -> tuple[np.ndarray, np.ndarray, float]:
    """A weight of [channels, inputs] as [inputs, channels]."""
    packed, scale, snr = pack_chosen(value, 0 if by_channel else None, top)
    return np.ascontiguousarray(packed.T), scale, snr


def by_directions(value: ir.Value, by_channel: bool, top: int) -> tuple[np.ndarray, np.ndarray, float]:
    """A weight of [directions, channels, inputs] as [directions, inputs, channels]; scales of [directions, channels] or [directions]."""
    weight = guards.constant(value, "the weight")
    kept = weight.shape[: 2 if by_channel else 1]
    packed, scale, snr = pack_array(weight.reshape(int(np.prod(kept)), -1), 0, top)
    return np.ascontiguousarray(packed.reshape(weight.shape).transpose(0, 2, 1)), scale.reshape(kept), snr


def guard_opset(context: Context, node: ir.Node) -> None:
    """Refuse below the opset that rounds dynamically."""
    opset = context.opset(node, "")
    guards.require(opset >= 11, f"opset {opset} has no DynamicQuantizeLinear (11 has)")


def guard_sum(length: int) -> None:
    """Refuse sums that may not fit into 32 bits."""
    guards.require(length <= LONGEST_SUM, f"a sum of {length} products may not fit into 32 bits")


def _guard_finite(tensor: ir.TensorProtocol, what: str) -> None:
    data = tensor.numpy()
    # The extremes of what holds a NaN are NaN; nothing as large as the weight is made.
    guards.require(bool(np.isfinite(data.min()) and np.isfinite(data.max())), f"{what} is not finite")


def _computed(value: ir.Value) -> ir.Node | None:
    """The node that computes a value of constants alone, if one does."""
    first = value.producer()
    front = [first] if first is not None else []
    for _ in range(_DEEP):
        following = []
        for node in front:
            if not node.inputs or any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
                return None
            for given in node.inputs:
                if given is None or constant_tensor(given) is not None:
                    continue
                if given.producer() is None:
                    return None
                following.append(given.producer())
        if not following:
            return first
        front = following
    return None
