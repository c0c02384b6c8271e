"""Pools over one, two or three spatial axes, and over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.table import operator
from graphopt.importing.values import Host, NotImportable, sizes
from graphopt.importing.windows import Windows, windows

_MAX = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
_MAX_INDICES = {1: functional.max_pool1d_with_indices, 2: functional.max_pool2d_with_indices, 3: functional.max_pool3d_with_indices}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@operator("MaxPool", several=True)
def max_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Indices count over the whole tensor, torch's over the spatial axes of each channel."""
    rank, kind = _rank(x), x.dtype
    dims = tuple(x.shape[2:])
    if not kind.is_floating_point:
        x = x.to(torch.float32 if x.element_size() < 4 else torch.float64)
    found = windows(dims, kernel_shape, strides, dilations, pads, auto_pad)
    padding, heads = list(found.heads), [0] * rank
    if not found.symmetric or any(2 * p > k for p, k in zip(padding, kernel_shape, strict=True)):
        found = found.exact(dims, ceil_mode)
        x = functional.pad(x, found.padding, value=-math.inf)
        padding, ceil_mode, heads = [0] * rank, 0, list(found.heads)
    arguments = (x, list(found.kernel), list(found.strides), padding, list(found.dilations), bool(ceil_mode))
    if outputs < 2:
        return (_MAX[rank](*arguments).to(kind),)
    values, places = _MAX_INDICES[rank](*arguments)
    return values.to(kind), _indices(places, tuple(x.shape[2:]), dims, heads, storage_order)


def _indices(places: Tensor, padded: Sequence[Any], dims: Sequence[Any], heads: Sequence[Any], storage_order: int) -> Tensor:
    """From places in each channel of the padded tensor to places in the tensor as it was given."""
    rest, coordinates = places, []
    for dim, head in zip(reversed(padded), reversed(heads), strict=True):
        coordinates.insert(0, rest % dim - head)
        rest = torch.div(rest, dim, rounding_mode="floor")
    order = range(len(dims)) if not storage_order else reversed(range(len(dims)))
    inner = torch.zeros_like(places)
    for i in order:
        inner = inner * dims[i] + coordinates[i]
    n, c = places.shape[:2]
    channel = torch.arange(n * c, device=places.device).reshape([n, c] + [1] * len(dims))
    return channel * math.prod(dims) + inner


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """What torch's own pool does not do (unlike pads, dilations) is the sum of each window over the number of elements
    that count in it."""
    rank, dims = _rank(x), tuple(x.shape[2:])
    found = windows(dims, kernel_shape, strides, dilations, pads, auto_pad)
    plain = found.symmetric and all(d == 1 for d in found.dilations)
    if plain and all(2 * p <= k for p, k in zip(found.heads, kernel_shape, strict=True)):
        call = (x, list(found.kernel), list(found.strides), list(found.heads), bool(ceil_mode), bool(count_include_pad))
        return _AVERAGE[rank](*call)
    exact = found.exact(dims, ceil_mode)
    counts = torch.ones([1, 1, *dims], dtype=x.dtype, device=x.device)
    if count_include_pad:
        # The padding that was asked for counts; what ceil_mode adds after it does not.
        counts = functional.pad(counts, found.padding, value=1.0)
        beyond = Windows(found.kernel, found.strides, found.dilations, (0,) * rank, _minus(exact.tails, found.tails))
        counts = functional.pad(counts, beyond.padding)
    else:
        counts = functional.pad(counts, exact.padding)
    return _sums(functional.pad(x, exact.padding), exact) / _sums(counts, exact)


def _minus(a: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(p - q for p, q in zip(a, b, strict=True))


def _sums(x: Tensor, found: Windows) -> Tensor:
    """The sum of each window, by a convolution with ones over each channel by itself."""
    n, c = x.shape[:2]
    ones = torch.ones([1, 1, *found.kernel], dtype=x.dtype, device=x.device)
    y = _CONV[len(found.kernel)](x.reshape([n * c, 1, *x.shape[2:]]), ones, None, found.strides, 0, found.dilations)
    return y.reshape([n, c, *y.shape[2:]])


@operator("LpPool")
@operator("LpPool", since=2)
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    p: float = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    dims = tuple(x.shape[2:])
    exact = windows(dims, kernel_shape, strides, dilations, pads, auto_pad).exact(dims, ceil_mode)
    return _sums(functional.pad(x.abs() ** p, exact.padding), exact) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: float = 2) -> Tensor:
    return (x.abs() ** p).sum(list(range(2, x.dim())), keepdim=True) ** (1 / p)


@operator("MaxUnpool", since=9, hosts=True)
def max_unpool(
    x: Tensor,
    places: Tensor,
    output_shape: Tensor | Host | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Each element goes where the pool found it. The places count over what the attributes give; a larger
    ``output_shape`` has zeros after it."""
    rank, dims = _rank(x), x.shape[2:]
    found = windows(dims, kernel_shape, strides, None, pads, "NOTSET")
    spatial = [(d - 1) * s + k - a - b for d, s, k, a, b in zip(dims, found.strides, found.kernel, found.heads, found.tails, strict=True)]
    target = [*x.shape[:2], *spatial]
    empty = torch.zeros(math.prod(target), dtype=x.dtype, device=x.device)
    y = empty.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(target)
    if output_shape is not None:
        asked = sizes(output_shape)[-rank:]
        y = functional.pad(y, [p for s, a in reversed(list(zip(spatial, asked, strict=True))) for p in (0, a - s)])
    return y


def _rank(x: Tensor) -> int:
    rank = x.dim() - 2
    if rank not in _MAX:
        raise NotImportable(f"a pool over {rank} spatial axes is not supported, torch has those over 1 to 3")
    return rank
