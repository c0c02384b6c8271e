"""Numbers in narrow integer types: scales, zero points, and what becomes of weights and biases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.model import ROUNDED
from graphopt.rewriting import constant_tensor, guards

_CHUNK = 1 << 20  # elements that are in double precision at a time
TOP = 127  # symmetric: -128 is not used, so that a weight and its negative have the same error
_BIAS = 2**30  # what a bias may be in units of its scale; int32 would hold twice that, and the sum needs room beside it


@dataclass(frozen=True)
class Grid:
    """What an integer q stands for: (q - zero) * scale. `scale` is a float32 scalar, `zero` a scalar of the integer type."""

    scale: np.ndarray
    zero: np.ndarray


def activation_grid(low: float, high: float, signed: bool) -> Grid:
    """The 8-bit grid over a range that holds zero, which it stands for exactly; never beyond the range by its rounding.

    Of a range that begins at zero the zero point is the least integer, so that a Relu before it has nothing left to do.
    """
    span = max(high - low, 2.0**-100)
    scale = np.float32(span / 255)
    if scale * np.float32(255) > np.float32(span):
        scale = np.nextafter(scale, np.float32(0))
    zero = int(np.clip(np.rint(-low / float(scale)), 0, 255))
    return Grid(np.asarray(scale), np.asarray(zero - 128, np.int8) if signed else np.asarray(zero, np.uint8))


def pack_bias(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int32 values of a bias whose scale is that of the products that it is added to."""
    return np.clip(np.rint(bias.astype(np.float64) / scale.astype(np.float64)), -(2**31) + 1, 2**31 - 1).astype(np.int32)


def least_scale(bias: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """The least scale of each channel's weights with which its bias fits into int32."""
    return np.abs(bias.astype(np.float64)) / (float(activation) * _BIAS)


def pack(
    tensor: ir.TensorProtocol, axis: int | None, top: int = TOP, least: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """The int8 values in [-top, top], the scales in the type of the weight, and the signal-to-noise ratio in dB.

    axis: one scale for each index along it; None: one for all. least: what scales are at least, one for each channel.
    Raises Refuse where the weight is not finite.
    """
    mapped = isinstance(tensor, ir.ExternalTensor) and tensor.raw is None
    weight = tensor.numpy()
    try:
        return pack_array(weight, axis, top, least)
    finally:
        if mapped:
            del weight
            tensor.release()  # type: ignore[union-attr]


def pack_array(
    weight: np.ndarray, axis: int | None, top: int = TOP, least: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """As `pack`, of an array."""
    step = max(1, _CHUNK // max(1, weight[0].size))
    parts = [slice(start, start + step) for start in range(0, weight.shape[0], step)]
    others = tuple(i for i in range(weight.ndim) if i != axis)
    tops = [np.abs(weight[part].astype(np.float64)).max(axis=others, keepdims=True) for part in parts]
    largest = np.concatenate(tops) if axis == 0 else np.max(tops, axis=0)
    guards.finite(largest, "the scales")
    wide_scale = largest / top
    if least is not None:
        wide_scale = np.maximum(wide_scale, least.reshape(largest.shape) if axis is not None else least.max())
    scale = wide_scale.astype(weight.dtype)
    # A channel of zeros, or of numbers too small for a scale of its own, becomes zeros.
    scale[np.abs(scale) < np.finfo(np.float32).tiny] = 1
    packed = np.empty(weight.shape, np.int8)
    signal = noise = 0.0
    for part in parts:
        wide, by = weight[part].astype(np.float64), (scale[part] if axis == 0 else scale).astype(np.float64)
        packed[part] = np.clip(np.rint(wide / by), -top, top)
        signal += float((wide**2).sum())
        noise += float(((packed[part] * by - wide) ** 2).sum())
    snr = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else 0.0
    return packed, scale.reshape(() if axis is None else -1), snr


def pack_chosen(
    value: ir.Value, axis: int | None, top: int = TOP, least: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """As `pack`, of the weight that a value holds, with the integers that a pass chose for it where scales are as it took them."""
    tensor = constant_tensor(value)
    assert tensor is not None
    packed, scale, snr = pack(tensor, axis, top, least)
    integers, taken, along = value.meta.get(ROUNDED, (None, None, None))
    if integers is None or axis is None or axis != along or int(np.abs(integers).max(initial=0)) > top:
        return packed, scale, snr
    same = (scale == taken).reshape([-1 if i == axis else 1 for i in range(packed.ndim)])
    return np.where(same, integers, packed), scale, snr


def channel_axis(node: ir.Node, place: int, rank: int) -> int:
    """The axis of a weight along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        # [Cin, Cout/g, ...]: with groups an index of axis 1 stands for a channel of each group; axis 0 tells them apart.
        return 1 if guards.attribute(node, "group", 1) == 1 else 0
    if node.op_type == "Gemm":
        return 0 if guards.attribute(node, "transB", 0) else 1
    return rank - 2 if node.op_type == "MatMul" and place == 0 else rank - 1
