"""Resampling along one axis: where each element of the result lies in the input, and which neighbours it is made of.

Coordinates are computed in float32, as ONNX Runtime does: near a boundary the rounding decides on the neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Resampling:
    """What a Resize does to one axis: from ``size`` elements to ``target``, ``scale`` times as many."""

    axis: int
    size: Any
    target: Any
    scale: Any
    #: Bounds of the region, as parts of the axis.
    region: tuple[Any, Any] = (0.0, 1.0)


def coordinates(how: Resampling, mode: str, device: torch.device) -> Tensor:
    """Where each element of the result lies in the input, for a coordinate_transformation_mode of ONNX."""
    x = torch.arange(how.target, dtype=torch.float32, device=device)
    size, target, scale = how.size, how.target, how.scale
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return torch.zeros_like(x) if _is(target, 1) else x * (size - 1) / (target - 1)
    if mode == "pytorch_half_pixel" and _is(target, 1):
        return torch.zeros_like(x)
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if mode == "tf_crop_and_resize":
        start, end = how.region
        if _is(target, 1):
            return x + 0.5 * (start + end) * (size - 1)
        return start * (size - 1) + x * (end - start) * (size - 1) / (target - 1)
    found = (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return found + size / 2 * (1 - target / (scale * size))
    return found


def _is(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number


def nearest(x: Tensor, mode: str) -> Tensor:
    """The neighbour that a nearest_mode of ONNX chooses."""
    if mode == "round_prefer_floor":
        found = torch.ceil(x - 0.5)
    elif mode == "round_prefer_ceil":
        found = torch.floor(x + 0.5)
    else:
        found = torch.floor(x) if mode == "floor" else torch.ceil(x)
    return found.to(torch.int64)


def cubic(x: Tensor, a: float) -> Tensor:
    """Keys' kernel."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def taps(x: Tensor, how: Resampling, mode: str, a: float, antialias: bool, exclude_outside: bool) -> tuple[Tensor, Tensor]:
    """Neighbours and their weights, [target, number of taps] each. Neighbours outside are those at the edge."""
    reach = 1 if mode == "linear" else 2
    stretch = min(how.scale, 1.0) if antialias else 1.0
    start = math.floor(-reach / stretch) + 1
    offsets = torch.arange(start, 2 - start, device=x.device)
    base = torch.floor(x)
    away = (offsets[None, :] - (x - base)[:, None]) * stretch
    weights = (1 - away.abs()).clamp(0, 1) if mode == "linear" else cubic(away, a)
    places = base.to(torch.int64)[:, None] + offsets[None, :]
    if exclude_outside:
        weights = torch.where((places >= 0) & (places < how.size), weights, torch.zeros_like(weights))
    if exclude_outside or antialias:
        weights = weights / weights.sum(1, keepdim=True)
    return places.clamp(torch.zeros_like(places[:1, :1]), torch.zeros_like(places[:1, :1]) + (how.size - 1)), weights


def weighted(x: Tensor, axis: int, places: Tensor, weights: Tensor) -> Tensor:
    """Sums of neighbours along an axis."""
    shape = [*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]]
    picked = x.index_select(axis, places.reshape(-1)).reshape(shape)
    return (picked * weights.to(x.dtype).reshape([*places.shape] + [1] * (x.dim() - axis - 1))).sum(axis + 1)


def blank_outside(y: Tensor, how: Resampling, x: Tensor, value: float) -> Tensor:
    """What lies outside the input, given a value of its own."""
    inside = ((x >= 0) & (x <= how.size - 1)).reshape([-1] + [1] * (y.dim() - how.axis - 1))
    return torch.where(inside, y, torch.full((), value, dtype=y.dtype, device=y.device))


def changed(plan: Sequence[Resampling]) -> list[Resampling]:
    """The axes that are resampled at all."""
    return [h for h in plan if not (isinstance(h.size, int) and isinstance(h.target, int) and h.size == h.target and h.scale == 1.0)]
