"""Shapes: what reads them, and what changes the shape of a tensor and leaves its elements."""

from __future__ import annotations

from torch import Tensor

from graphopt.importing.table import operator
from graphopt.importing.values import Host, numbers, sizes_of, vector


@operator("Shape", hosts=True)
def shape(x: Tensor | Host, *, start: int = 0, end: int | None = None) -> Host:
    return vector(sizes_of(x)[start:end])


@operator("Reshape", since=5, hosts=True)
def reshape(x: Tensor | Host, shape: Tensor | Host, *, allowzero: int = 0) -> Tensor | Host:
    target = numbers(shape)
    dims = sizes_of(x)
    if not allowzero:
        target = [dims[i] if isinstance(d, int) and d == 0 else d for i, d in enumerate(target)]
    return x.reshape(target)
