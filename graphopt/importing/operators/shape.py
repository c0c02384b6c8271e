"""Shapes: what reads them, and what changes the shape of a tensor and leaves its elements."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from graphopt.importing import host
from graphopt.importing.table import operator
from graphopt.importing.values import (
    Host,
    NotImportable,
    as_tensor,
    as_tensors,
    dtype_of,
    fits,
    is_host,
    number,
    numbers,
    scalar,
    sizes,
    vector,
)

_Value = Tensor | Host


def placed(axis: int, rank: int) -> int:
    """An axis counted from the front. Raises NotImportable where there is none."""
    if not -rank <= axis < max(rank, 1):
        raise NotImportable(f"there is no axis {axis} in a tensor of rank {rank}")
    return axis + rank if axis < 0 else axis


@operator("Shape", hosts=True)
def shape(x: _Value, *, start: int = 0, end: int | None = None) -> Host:
    return vector(tuple(x.shape)[start:end])


@operator("Size", hosts=True)
def size(x: _Value) -> Host:
    return scalar(math.prod(tuple(x.shape)))


@operator("Reshape", hosts=True)
def reshape_attribute(x: _Value, *, shape: list[int], consumed_inputs: Any = None) -> _Value:
    return reshape(x, vector(shape))


@operator("Reshape", since=5, hosts=True)
def reshape(x: _Value, shape: _Value, *, allowzero: int = 0) -> _Value:
    """A 0 of the shape is the dimension of the input in its place, unless ``allowzero`` takes it at its word."""
    target = numbers(shape)
    if not allowzero:
        dims = tuple(x.shape)
        target = [dims[i] if isinstance(d, int) and d == 0 else d for i, d in enumerate(target)]
    if is_host(x):
        if all(isinstance(d, int) for d in target):
            return host.reshaped(x, target)
        x = as_tensor(x)
    if -1 in [d for d in target if isinstance(d, int)] and 0 in [d for d in target if isinstance(d, int)]:
        target = [0 if isinstance(d, int) and d == -1 else d for d in target]  # what torch calls ambiguous is empty in ONNX
    return x.reshape(target)


@operator("Flatten", hosts=True)
def flatten(x: _Value, *, axis: int = 1) -> _Value:
    dims = tuple(x.shape)
    at = axis + len(dims) if axis < 0 else axis
    target = [math.prod(dims[:at]), math.prod(dims[at:])]
    return host.reshaped(x, target) if is_host(x) else x.reshape(target)


@operator("Transpose", hosts=True)
def transpose(x: _Value, *, perm: list[int] | None = None) -> _Value:
    order = perm if perm is not None else list(range(len(x.shape)))[::-1]
    if not is_host(x):
        return x.permute(order)
    return host.move(x, [x.shape[o] for o in order], lambda at: [at[order.index(i)] for i in range(len(order))])


@operator("Concat", hosts=True)
def concat(*parts: Any, axis: int = 1) -> _Value:
    if all(is_host(p) for p in parts):
        return host.joined(parts, placed(axis, len(parts[0].shape)))
    tensors = as_tensors(parts)
    return torch.cat(tensors, axis)


@operator("Split", hosts=True, several=True)
def split_attribute(x: _Value, *, axis: int = 0, split: list[int] | None = None, outputs: int) -> tuple[_Value, ...]:
    return split_(x, vector(split) if split else None, axis=axis, outputs=outputs)


@operator("Split", since=13, hosts=True, several=True)
@operator("Split", since=18, hosts=True, several=True)
def split_(x: _Value, split: _Value | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int) -> tuple[_Value, ...]:
    """Equal parts, the last of them smaller where it does not come out even."""
    axis = placed(axis, len(x.shape))
    if split is not None:
        lengths = sizes(split)
    else:
        parts, whole = num_outputs or outputs, x.shape[axis]
        each = -(-whole // parts)
        lengths = [each] * (parts - 1) + [whole - each * (parts - 1)]
    if is_host(x):
        bounds = [0, *itertools.accumulate(lengths)]
        return tuple(host.taken(x, vector(range(a, b)), axis) for a, b in itertools.pairwise(bounds))
    return torch.split(x, lengths, axis)


@operator("Squeeze", hosts=True)
def squeeze_attribute(x: _Value, *, axes: list[int] | None = None) -> _Value:
    return squeeze(x, vector(axes) if axes is not None else None)


@operator("Squeeze", since=13, hosts=True)
def squeeze(x: _Value, axes: _Value | None = None) -> _Value:
    dims = tuple(x.shape)
    if axes is None:
        gone = {i for i, d in enumerate(dims) if d == 1}
    else:
        gone = {placed(a, len(dims)) for a in numbers(axes)}
    if is_host(x):
        return x._replace(shape=tuple(d for i, d in enumerate(dims) if i not in gone))
    if not gone:
        return x
    if any(isinstance(dims[i], int) and dims[i] != 1 for i in gone):
        raise ValueError(f"a dimension of {list(dims)} that is to be squeezed is not 1")
    return x.squeeze(sorted(gone))


@operator("Unsqueeze", hosts=True)
def unsqueeze_attribute(x: _Value, *, axes: list[int]) -> _Value:
    return unsqueeze(x, vector(axes))


@operator("Unsqueeze", since=13, hosts=True)
def unsqueeze(x: _Value, axes: _Value) -> _Value:
    new = numbers(axes)
    rank = len(x.shape) + len(new)
    at = sorted(placed(a, rank) for a in new)
    if is_host(x):
        dims = list(x.shape)
        for a in at:
            dims.insert(a, 1)
        return x._replace(shape=tuple(dims))
    for a in at:
        x = x.unsqueeze(a)
    return x


@operator("Expand", since=8, hosts=True)
def expand(x: _Value, shape: _Value) -> _Value:
    """Broadcasting goes both ways: a 1 in the target keeps the dimension of the input."""
    target, dims = sizes(shape), tuple(x.shape)
    rank = max(len(target), len(dims))
    target, dims = [1] * (rank - len(target)) + target, (1,) * (rank - len(dims)) + dims
    target = [_broadcast(t, d) for t, d in zip(target, dims, strict=True)]
    if is_host(x):
        if fits(target):
            return host.expanded(x, target)
        x = as_tensor(x)
    return x.expand(target)


def _broadcast(size: Any, dim: Any) -> Any:
    """What a size of the target and a dimension make; of two symbolic ones, the first, as torch.export cannot decide."""
    if isinstance(dim, int):
        if isinstance(size, int) and 1 not in (size, dim) and size != dim:
            raise ValueError(f"a dimension of {dim} does not broadcast to {size}")
        return size if dim == 1 else dim
    return dim if isinstance(size, int) and size == 1 else size


@operator("Tile", hosts=True)
@operator("Tile", since=6, hosts=True)
def tile(x: _Value, repeats: _Value, axis: _Value | None = None) -> _Value:
    """Before version 6: how often, and along which one axis."""
    times = sizes(repeats)
    if axis is not None:
        times = [times[0] if i == number(axis) else 1 for i in range(len(x.shape))]
    if is_host(x):
        if fits([d * t for d, t in zip(x.shape, times, strict=True)]):
            whole = [d * t for d, t in zip(x.shape, times, strict=True)]
            return host.move(x, whole, lambda at: [a % d for a, d in zip(at, x.shape, strict=True)])
        x = as_tensor(x)
    return x.repeat(times)


@operator("Slice", hosts=True)
def slice_attributes(x: _Value, *, starts: list[int], ends: list[int], axes: list[int] | None = None) -> _Value:
    return slice_(x, vector(starts), vector(ends), vector(axes) if axes is not None else None)


@operator("Slice", since=10, hosts=True)
def slice_(x: _Value, starts: _Value, ends: _Value, axes: _Value | None = None, steps: _Value | None = None) -> _Value:
    """Bounds outside the tensor are moved to its ends; a negative step walks backwards."""
    first, last = numbers(starts), numbers(ends)
    rank = len(x.shape)
    along = [placed(a, rank) for a in numbers(axes)] if axes is not None else list(range(len(first)))
    step = numbers(steps) if steps is not None else [1] * len(first)
    if is_host(x):
        for start, end, axis, by in zip(first, last, along, step, strict=True):
            stop = end if by > 0 or end >= -x.shape[axis] else None
            x = host.taken(x, vector(range(x.shape[axis])[start:stop:by]), axis)
        return x
    for start, end, axis, by in zip(first, last, along, step, strict=True):
        x = _forwards(x, axis, start, end, by) if by > 0 else _backwards(x, axis, start, end, by)
    return x


_FAR = 2**63 - 1


def _forwards(x: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    if isinstance(end, int) and end >= 2**31 - 1:
        end = _FAR  # to the end, in whichever width the exporter spelled it
    if isinstance(start, int) and start <= -(2**31):
        start = 0
    return torch.ops.aten.slice.Tensor(x, axis, start, end, step)


def _backwards(x: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    """torch knows no negative step: the tensor is turned around, and the bounds with it."""
    length = x.shape[axis]
    turned = x.flip(axis)
    begin = torch.sym_min(_turned(start, length), length - 1) if isinstance(start, int) and start < -1 else _turned(start, length)
    stop = _FAR if isinstance(end, int) and end <= -(2**31) else _turned(end, length)
    return torch.ops.aten.slice.Tensor(turned, axis, begin, stop, -step)


def _turned(bound: Any, length: Any) -> Any:
    """Where a bound lies in the tensor turned around: ``length - 1 - bound``, kept from meaning "from the end"."""
    if isinstance(bound, int) and bound < 0:
        return -1 - bound
    if isinstance(bound, int) and bound >= 2**31 - 1:
        return 0
    at = length - 1 - bound
    return torch.sym_max(at, 0)


@operator("Range", since=11, hosts=True)
def range_(start: _Value, limit: _Value, delta: _Value) -> _Value:
    first, last, by = number(start), number(limit), number(delta)
    if all(isinstance(e, int) for e in (first, last, by)) and len(range(first, last, by)) <= 16:
        return vector(range(first, last, by), start.dtype)
    device = next((v.device for v in (start, limit, delta) if isinstance(v, Tensor)), None)
    if not start.dtype.is_floating_point:
        return torch.arange(first, last, by, dtype=start.dtype, device=device)
    length = torch.sym_max(math.ceil((last - first) / by), 0)
    return torch.arange(length, dtype=start.dtype, device=device) * by + first


@operator("ConstantOfShape", since=9, hosts=True)
def constant_of_shape(shape: _Value, *, value: Host | None = None) -> _Value:
    dims = sizes(shape)
    item, dtype = (value.items[0], value.dtype) if value is not None else (0.0, torch.float32)
    if fits(dims) and dtype in (torch.int64, torch.int32, torch.bool) and len(dims) <= 1:
        return Host((item,) * math.prod(dims), tuple(dims), dtype)
    return torch.full(dims, item, dtype=dtype, device=shape.device if isinstance(shape, Tensor) else None)


@operator("EyeLike", since=9, hosts=True)
def eye_like(x: _Value, *, dtype: int | None = None, k: int = 0) -> Tensor:
    rows, columns = x.shape
    device = x.device if isinstance(x, Tensor) else None
    across = torch.arange(columns, device=device) - torch.arange(rows, device=device).unsqueeze(1)
    return (across == k).to(x.dtype if dtype is None else dtype_of(dtype))


@operator("Trilu", since=14, hosts=True)
def trilu(x: _Value, k: _Value | None = None, *, upper: int = 1) -> Tensor:
    by = number(k) if k is not None else 0
    x = as_tensor(x)
    return torch.triu(x, by) if upper else torch.tril(x, by)


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        parts = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // (b * b), h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    parts = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 1, 3, 5, 2, 4) if mode == "CRD" else (0, 3, 5, 1, 2, 4)
    return parts.permute(order).reshape(n, c * b * b, h // b, w // b)
