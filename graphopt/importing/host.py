"""Arithmetic and movement on Hosts: what a tensor operator does, done on known elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from graphopt.importing.values import LIMIT, Host


def elementwise(function: Callable[..., Any], *hosts: Host, dtype: torch.dtype | None = None) -> Host | None:
    """``function`` of the elements of Hosts that broadcast; None where the result is too large for a Host."""
    shape = broadcast([h.shape for h in hosts])
    if math.prod(shape) > LIMIT:
        return None
    columns = [_spread(h, shape) for h in hosts]
    return settled(Host(tuple(function(*row) for row in zip(*columns, strict=True)), shape, dtype or hosts[0].dtype))


def settled(host: Host) -> Host:
    """The same with each float that is known rounded as a float32 tensor would have it."""
    if host.dtype is not torch.float32:
        return host
    return host._replace(items=tuple(float(np.float32(i)) if isinstance(i, float) else i for i in host.items))


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that shapes of numbers broadcast to. Raises ValueError."""
    if len(set(shapes)) == 1:
        return shapes[0]
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    found = [next((d for d in dims if d != 1), 1) for dims in zip(*padded, strict=True)]
    if any(d not in (1, f) for dims, f in zip(zip(*padded, strict=True), found, strict=True) for d in dims):
        raise ValueError(f"shapes {list(shapes)} do not broadcast")
    return tuple(found)


def _spread(host: Host, shape: tuple[int, ...]) -> Sequence[Any]:
    if host.shape == shape:
        return host.items
    if len(host.items) == 1:
        return host.items * math.prod(shape)
    return expanded(host, shape).items


def move(host: Host, shape: Sequence[int], place: Callable[[tuple[int, ...]], Sequence[int]]) -> Host:
    """A Host of another shape; ``place`` says at which place of ``host`` the element of each of its places lies.

    Plain Python, and no numpy: torch's tracers take arrays for tensors.
    """
    items = [host.items[_flat(place(at), host.shape)] for at in itertools.product(*[range(d) for d in shape])]
    return Host(tuple(items), tuple(shape), host.dtype)


def _flat(place: Sequence[int], shape: Sequence[int]) -> int:
    found = 0
    for at, size in zip(place, shape, strict=True):
        found = found * size + (at + size if at < 0 else at)
    return found


def expanded(host: Host, shape: Sequence[int]) -> Host:
    """The Host broadcast to a shape of at least its rank."""
    skipped = len(shape) - len(host.shape)
    return move(host, shape, lambda at: [0 if d == 1 else a for a, d in zip(at[skipped:], host.shape, strict=True)])


def taken(host: Host, places: Host, axis: int) -> Host:
    """What lies along an axis at the given places, which take that axis' place in the shape. Raises IndexError."""
    size, rank = host.shape[axis], len(places.shape)
    if any(not -size <= i < size for i in places.items):
        raise IndexError(f"an index is outside of an axis of {size}")
    shape = [*host.shape[:axis], *places.shape, *host.shape[axis + 1 :]]
    return move(host, shape, lambda at: [*at[:axis], places.items[_flat(at[axis : axis + rank], places.shape)], *at[axis + rank :]])


def joined(hosts: Sequence[Host], axis: int) -> Host:
    """Hosts one after the other along an axis."""
    lengths = [h.shape[axis] for h in hosts]
    sources = [(i, at) for i, length in enumerate(lengths) for at in range(length)]
    shape = [*hosts[0].shape[:axis], len(sources), *hosts[0].shape[axis + 1 :]]
    items = []
    for at in itertools.product(*[range(d) for d in shape]):
        which, place = sources[at[axis]]
        items.append(hosts[which].items[_flat([*at[:axis], place, *at[axis + 1 :]], hosts[which].shape)])
    return Host(tuple(items), tuple(shape), hosts[0].dtype)


def reshaped(host: Host, shape: Sequence[int]) -> Host:
    """The same elements in another shape, of which one dimension may be -1."""
    shape = list(shape)
    if -1 in shape:
        at = shape.index(-1)
        rest = math.prod(d for d in shape if d != -1)
        shape[at] = len(host.items) // rest if rest else 0
    if math.prod(shape) != len(host.items):
        raise ValueError(f"{len(host.items)} elements do not make the shape {shape}")
    return host._replace(shape=tuple(shape))


def divided(a: Any, b: Any) -> Any:
    """ONNX's quotient: of integers it is cut towards zero."""
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return float(np.divide(a, b)) if isinstance(b, float) and not b else a / b
    if isinstance(b, int) and b == 1:
        return a
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


def as_float(item: Any) -> Any:
    """A number as a float."""
    return torch.sym_float(item) if isinstance(item, (torch.SymInt, torch.SymFloat)) else float(item)


def as_int(item: Any) -> Any:
    """A number as an integer, cut towards zero."""
    if isinstance(item, torch.SymBool):
        return int(bool(item))
    return torch.sym_int(item) if isinstance(item, (torch.SymInt, torch.SymFloat)) else int(item)


def as_bool(item: Any) -> bool:
    """A number as a truth value; of a symbolic one, what it is for the sizes that the program is exported with."""
    return bool(item != 0) if not isinstance(item, (bool, torch.SymBool)) else bool(item)


def cast(host: Host, dtype: torch.dtype) -> Host:
    """The elements in another data type."""
    if dtype is torch.bool:
        change = as_bool
    elif dtype.is_floating_point:
        change = as_float
    else:
        change = as_int
    return settled(Host(tuple(change(i) for i in host.items), host.shape, dtype))
