"""Permutations of axes: a value in the layout `perm` has as its axis i what was axis `perm[i]`, as Transpose counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import onnx_ir as ir

from graphopt.rewriting import Context

Perm: TypeAlias = tuple[int, ...]


def perm_of(context: Context, node: ir.Node) -> Perm | None:
    """The permutation that a Transpose makes; None where it is not known."""
    given = node.attributes.get("perm")
    if given is not None:
        return None if given.is_ref() else tuple(given.as_ints())
    rank = context.rank(node.inputs[0])
    return None if rank is None else tuple(range(rank))[::-1]


def is_identity(perm: Perm) -> bool:
    """Whether nothing is moved."""
    return all(i == axis for i, axis in enumerate(perm))


def inverse(perm: Perm) -> Perm:
    """What undoes `perm`."""
    found = [0] * len(perm)
    for i, axis in enumerate(perm):
        found[axis] = i
    return tuple(found)


def compose(first: Perm, second: Perm) -> Perm:
    """What `first` and then `second` make."""
    return tuple(first[axis] for axis in second)


def without(perm: Perm, axes: Sequence[int]) -> Perm:
    """The layout of what is left when `axes` (of the old layout) are taken away."""
    gone = set(axes)
    left = sorted(set(perm) - gone)
    number = {axis: i for i, axis in enumerate(left)}
    return tuple(number[axis] for axis in perm if axis not in gone)


def with_axes(perm: Perm, axes: Sequence[int]) -> Perm:
    """The layout where `axes` are added (numbered in what results), and stay where they are."""
    rank = len(perm) + len(axes)
    added = set(axes)
    old = [axis for axis in range(rank) if axis not in added]
    rest = iter(perm)
    return tuple(axis if axis in added else old[next(rest)] for axis in range(rank))


def moves_ones_only(perm: Perm, dims: Sequence[int | str] | None) -> bool:
    """Whether the axes that are not 1 keep their order: the elements then stay where they are in memory."""
    if dims is None or len(dims) != len(perm):
        return False
    real = [axis for axis in perm if dims[axis] != 1]
    return real == sorted(real)
