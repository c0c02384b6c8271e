"""Pad, in all its modes: constant, reflect, edge, wrap; negative pads cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.operators.shape import placed
from graphopt.importing.table import operator
from graphopt.importing.values import Host, as_tensor, number, numbers, vector


@operator("Pad")
def pad_attributes_1(x: Tensor, *, paddings: list[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    return _pad(x, paddings, value, list(range(x.dim())), mode)


@operator("Pad", since=2)
def pad_attributes(x: Tensor, *, pads: list[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    return _pad(x, pads, value, list(range(x.dim())), mode)


@operator("Pad", since=11, hosts=True)
def pad(
    x: Tensor | Host, pads: Tensor | Host, value: Tensor | Host | None = None, axes: Tensor | Host | None = None, *, mode: str = "constant"
) -> Tensor | Host:
    if isinstance(x, Host):
        if mode == "constant" and len(x.shape) == 1 and all(isinstance(p, int) and p >= 0 for p in numbers(pads)):
            before, after = numbers(pads)
            fill = (number(value) if value is not None else 0,)
            return vector(fill * before + x.items + fill * after, x.dtype)
        x = as_tensor(x)
    along = [placed(a, x.dim()) for a in numbers(axes)] if axes is not None else list(range(x.dim()))
    return _pad(x, numbers(pads), number(value) if value is not None else 0, along, mode)


def _pad(x: Tensor, pads: list[Any], value: Any, axes: list[int], mode: str) -> Tensor:
    """``pads``: what to add before each axis, then after each."""
    half = len(pads) // 2
    both = {axis: (before, after) for axis, before, after in zip(axes, pads[:half], pads[half:], strict=True)}
    both = {axis: pair for axis, pair in both.items() if not all(isinstance(p, int) and p == 0 for p in pair)}
    if not both:
        return x
    if mode == "constant":
        flat = [p for axis in range(x.dim() - 1, min(both) - 1, -1) for p in both.get(axis, (0, 0))]
        if x.dtype is torch.bool:
            return functional.pad(x.to(torch.uint8), flat, value=int(value)).to(torch.bool)
        return functional.pad(x, flat, value=value)
    for axis, (before, after) in both.items():
        x = _along(x, axis, before, after, mode)
    return x


def _along(x: Tensor, axis: int, before: Any, after: Any, mode: str) -> Tensor:
    """One axis, by the places that its new elements are taken from. A pad that cuts does so first."""
    start = -before if isinstance(before, int) and before < 0 else 0
    end = -after if isinstance(after, int) and after < 0 else 0
    if start or end:
        x = x.narrow(axis, start, x.shape[axis] - start - end)
        before, after = torch.sym_max(before, 0), torch.sym_max(after, 0)
    length = x.shape[axis]
    places = torch.arange(-before, length + after, device=x.device)
    if mode == "edge":
        places = places.clamp(0, length - 1)
    elif mode == "wrap":
        places = places.remainder(length)
    else:  # reflect: back and forth, with a period of twice the way from the first to the last
        period = torch.sym_max(2 * (length - 1), 1)
        places = places.remainder(period)
        places = torch.minimum(places, (period - places).abs()) if not isinstance(length, int) or length > 1 else places * 0
    return x.index_select(axis, places)
