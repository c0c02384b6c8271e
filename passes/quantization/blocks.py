"""Matrices in a few bits: numbers in blocks along a row, a scale and a zero point for each block.

A matrix here is [N, K]: N outputs, each a row of K weights. A block is a stretch of a row; w = (q - zero) * scale with q
and zero in 0 to 2**bits - 1. Symmetric: the zero point is 2**(bits - 1) everywhere, and not stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphopt.rewriting import guards

_CHUNK = 1 << 16  # elements that are worked on at a time: they stay in a cache

#: From blocks [n, block] in float32, the largest integer and whether the grid is symmetric, to scales and zero points, [n, 1] each.
Fit = Callable[[np.ndarray, int, bool], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Layout:
    """How many bits a number has, how many numbers a block, and whether blocks have no zero points of their own."""

    bits: int
    block: int
    symmetric: bool

    @property
    def top(self) -> int:
        """The largest integer."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 2 ** (self.bits - 1)

    def blocks(self, columns: int) -> int:
        """How many blocks a row of that many columns has."""
        return -(-columns // self.block)

    def bytes(self, rows: int, columns: int, scale: int = 4) -> int:
        """What a matrix takes, with scales of `scale` bytes."""
        count = self.blocks(columns)
        zeros = 0 if self.symmetric else -(-count * self.bits // 8)
        return rows * (count * (self.block * self.bits // 8 + scale) + zeros)


@dataclass(frozen=True)
class Blocks:
    """A matrix [N, K] in blocks.

    Attributes:
        layout: bits, block, symmetric.
        columns: K.
        integers: uint8 [N, G, block]; what fills up the last block is its zero point.
        scale: [N, G], in the type of the weight.
        zero: uint8 [N, G].
        snr: the signal-to-noise ratio of the weights in dB.
    """

    layout: Layout
    columns: int
    integers: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    snr: float

    @property
    def bytes(self) -> int:
        """What they take when packed."""
        return self.layout.bytes(len(self.integers), self.columns, self.scale.itemsize)

    def dense(self) -> np.ndarray:
        """The matrix that these stand for, float32 [N, K]."""
        wide = (self.integers.astype(np.float32) - self.zero[..., None]) * self.scale[..., None].astype(np.float32)
        return wide.reshape(len(wide), -1)[:, : self.columns]

    def packed(self) -> np.ndarray:
        """The integers as bytes, [N, G, block * bits / 8]; of two in one byte the first is in the lower half."""
        return pack_bytes(self.integers, self.layout.bits)

    def packed_zeros(self) -> np.ndarray | None:
        """The zero points as bytes, [N, ceil(G * bits / 8)]; None of a symmetric grid."""
        return None if self.layout.symmetric else pack_bytes(self.zero, self.layout.bits)


def pack_bytes(integers: np.ndarray, bits: int) -> np.ndarray:
    """Integers of 4 or 8 bits as bytes along the last axis, the first of two in the lower half; zeros fill up an odd number."""
    if bits == 8:
        return np.ascontiguousarray(integers)
    if integers.shape[-1] % 2:
        integers = np.concatenate([integers, np.zeros((*integers.shape[:-1], 1), np.uint8)], axis=-1)
    return integers[..., 0::2] | (integers[..., 1::2] << 4)


def quantize(weight: np.ndarray, layout: Layout, fit: Fit) -> Blocks:
    """A matrix [N, K] rounded to the nearest integers of the grids that `fit` gives. Refuses what is not finite."""
    rows, columns = weight.shape
    count = layout.blocks(columns)
    integers = np.empty((rows, count, layout.block), np.uint8)
    scale, zero = np.empty((rows, count), weight.dtype), np.empty((rows, count), np.uint8)
    signal = noise = 0.0
    step = max(1, _CHUNK // (count * layout.block))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        wide = padded(weight[part], layout)
        guards.finite(wide, "the scales")
        some, zeros = fit(wide.reshape(-1, layout.block), layout.top, layout.symmetric)
        scale[part], zero[part] = some.reshape(-1, count), zeros.reshape(-1, count)
        by = scale[part, :, None].astype(np.float32)  # as stored: float16 scales are rounded
        integers[part] = to_integers(wide, by, zero[part, :, None], layout.top)
        back = (integers[part].astype(np.float32) - zero[part, :, None]) * by
        signal += float(np.vdot(wide, wide))
        noise += float(((back - wide) ** 2).sum(dtype=np.float64))
    return Blocks(layout, columns, integers, scale, zero, decibels(signal, noise))


def padded(weight: np.ndarray, layout: Layout) -> np.ndarray:
    """float32 [n, G, block] of rows [n, K]; zeros fill up the last block."""
    rows, columns = weight.shape
    wide = np.zeros((rows, layout.blocks(columns) * layout.block), np.float32)
    wide[:, :columns] = weight
    return wide.reshape(rows, -1, layout.block)


def to_integers(wide: np.ndarray, scale: np.ndarray, zero: np.ndarray, top: int) -> np.ndarray:
    """The nearest integers of a grid, as floats."""
    return np.clip(np.rint(wide / scale) + zero, 0, top)


def nearest(wide: np.ndarray, top: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """The grids that hold all of a block and zero: round to nearest (RTN).

    Of a symmetric one the number of the largest magnitude is exactly the lowest integer, which has no counterpart.
    """
    low, high = np.minimum(wide.min(axis=1, keepdims=True), 0), np.maximum(wide.max(axis=1, keepdims=True), 0)
    if symmetric:
        middle = (top + 1) // 2
        scale = np.where(-low >= high, low, high) / -middle
        zero = np.full_like(scale, middle)
    else:
        scale = (high - low) / top
        zero = None
    scale = usable(scale)
    if zero is None:
        zero = np.clip(np.rint(-low / scale), 0, top)
    return scale, zero


def usable(scale: np.ndarray) -> np.ndarray:
    """Scales that can be divided by: blocks of zeros, or of numbers too small for a scale of their own, become zeros."""
    return np.where(np.abs(scale) < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)


def decibels(signal: float, noise: float) -> float:
    """A signal-to-noise ratio in dB."""
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else 0.0
