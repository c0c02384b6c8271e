"""Elements written at places: Scatter and its kin, TensorScatter, Col2Im, and centred cropping and padding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from graphopt.importing.operators.gathering import wrapped
from graphopt.importing.table import operator
from graphopt.importing.values import NotImportable, as_tensor, sizes

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _refuse(attributes: dict[str, Any]) -> str | None:
    reduction = attributes.get("reduction", "none")
    return None if reduction == "none" or reduction in _REDUCTIONS else f"its reduction '{reduction}' is not supported"


@operator("Scatter", since=9)
@operator("ScatterElements", since=11, refuse=_refuse)
def scatter_elements(data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    places = wrapped(indices, data.shape[axis])
    if reduction == "none":
        return torch.scatter(data, axis, places, updates)
    return torch.scatter_reduce(data, axis, places, updates, _REDUCTIONS[reduction])


@operator("ScatterND", since=11, refuse=_refuse)
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """The last axis of the indices is a place in the first axes of the data, where a slice of the updates goes."""
    depth = indices.shape[-1]
    places = tuple(wrapped(indices[..., i], data.shape[i]) for i in range(depth))
    if not places:  # no axis is indexed: the whole tensor is one slice, written once for each row of the indices
        places, data, whole = (torch.zeros(indices.shape[:-1], dtype=torch.int64, device=data.device),), data[None], True
    else:
        whole = False
    if reduction in ("none", "add"):
        found = data.index_put(places, updates, accumulate=reduction == "add")
        return found[0] if whole else found
    # As one axis: the rows that the indices name, and in each of them the rest of the axes.
    lead = data.shape[: len(places)]
    row = places[0]
    for size, place in zip(lead[1:], places[1:], strict=True):
        row = row * size + place
    rest = data.shape[len(places) :]
    flat = data.reshape(math.prod(lead), math.prod(rest))
    rows = row.reshape(-1, 1).expand(-1, flat.shape[1])
    found = torch.scatter_reduce(flat, 0, rows, updates.reshape(rows.shape[0], flat.shape[1]), _REDUCTIONS[reduction]).reshape(data.shape)
    return found[0] if whole else found


@operator("TensorScatter", since=24)
def tensor_scatter(cache: Tensor, update: Tensor, starts: Tensor | None = None, *, axis: int = -2, mode: str = "linear") -> Tensor:
    """Each sample's update, written into its cache from a start of its own."""
    axis %= cache.dim()
    steps = torch.arange(update.shape[axis], device=cache.device)
    shape = [1] * cache.dim()
    shape[axis] = update.shape[axis]
    places = steps.reshape(shape)
    if starts is not None:
        places = places + starts.to(torch.int64).reshape(-1, *[1] * (cache.dim() - 1))
    if mode == "circular":
        places = places % cache.shape[axis]
    return torch.scatter(cache, axis, places.expand(update.shape), update)


@operator("Col2Im", since=18, hosts=True)
def col2im(
    x: Any, image: Any, block: Any, *, dilations: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None
) -> Tensor:
    """Blocks laid back into an image of any rank; what overlaps is added."""
    x = as_tensor(x)
    image, block = sizes(image), sizes(block)
    rank = len(image)
    dilations, strides, pads = dilations or [1] * rank, strides or [1] * rank, pads or [0] * 2 * rank
    if rank == 2 and pads[:2] == pads[2:]:
        return torch.nn.functional.fold(x, image, block, dilations, pads[:2], strides)
    if x.shape[1] % math.prod(block):
        raise NotImportable("Col2Im: the channels are no multiple of the block")
    channels = x.shape[1] // math.prod(block)
    padded = [d + pads[i] + pads[i + rank] for i, d in enumerate(image)]
    counts = [(padded[i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(rank)]
    place = torch.zeros((), dtype=torch.int64, device=x.device)
    for i in range(rank):  # of each element of each block, in the padded image: axes are block..., count...
        inside = torch.arange(block[i], device=x.device) * dilations[i]
        start = torch.arange(counts[i], device=x.device) * strides[i]
        shape = [1] * 2 * rank
        shape[i], shape[rank + i] = block[i], counts[i]
        place = place * padded[i] + (inside[:, None] + start[None, :]).reshape(shape)
    place = place.expand([*block, *counts]).reshape(-1)
    flat = x.reshape(x.shape[0], channels, -1)
    found = torch.zeros(x.shape[0], channels, math.prod(padded), dtype=x.dtype, device=x.device)
    found = found.index_add(2, place, flat).reshape(x.shape[0], channels, *padded)
    for i in range(rank):
        found = found.narrow(2 + i, pads[i], image[i])
    return found


@operator("CenterCropPad", since=18, hosts=True)
def center_crop_pad(x: Any, shape: Any, *, axes: list[int] | None = None) -> Tensor:
    """An odd difference is cut or padded at the end."""
    x = as_tensor(x)
    for axis, size in zip(axes if axes is not None else range(x.dim()), sizes(shape), strict=True):
        have = x.shape[axis]
        if have > size:
            x = x.narrow(axis, (have - size) // 2, size)
        elif have < size:
            before = (size - have) // 2
            pads = [0, 0] * (x.dim() - 1 - axis % x.dim()) + [before, size - have - before]
            x = torch.nn.functional.pad(x, pads)
    return x
