"""Values that are known on the host: shapes, the arithmetic that is done on them, and small constants.

ONNX computes with shapes in tensors. Here such a tensor is a :class:`Host`: its elements are Python numbers, or torch's
symbolic ones while a program is being exported, so that no shape ever depends on data. What an operator cannot do on
a Host it does on the tensor that :func:`as_tensor` makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

#: A tensor of more elements is data, not a shape.
LIMIT = 64


class Host(NamedTuple):
    """A small tensor whose elements are known: ``items`` in row-major order (int, float, bool, SymInt, SymFloat, SymBool)."""

    items: tuple
    shape: tuple[int, ...]
    dtype: torch.dtype


class NotImportable(ValueError):
    """What this importer does not do; the message is one clause in plain words."""


def is_host(value: Any) -> bool:
    return isinstance(value, Host)


def vector(items: Iterable[Any], dtype: torch.dtype = torch.int64) -> Host:
    """A Host of rank 1."""
    items = tuple(items)
    return Host(items, (len(items),), dtype)


def scalar(item: Any, dtype: torch.dtype = torch.int64) -> Host:
    """A Host of rank 0."""
    return Host((item,), (), dtype)


def as_tensor(value: Any, like: torch.Tensor | None = None) -> Any:
    """The tensor that a Host stands for, on the device of ``like``; any other value as it is."""
    if not isinstance(value, Host):
        return value
    device = like.device if like is not None else None
    if any(isinstance(i, (torch.SymInt, torch.SymFloat, torch.SymBool)) for i in value.items):
        elements = [torch.scalar_tensor(i, dtype=value.dtype, device=device) for i in value.items]
        return torch.stack(elements).reshape(value.shape) if value.shape else elements[0]
    if not value.shape:
        return torch.scalar_tensor(value.items[0], dtype=value.dtype, device=device)
    return torch.tensor(value.items, dtype=value.dtype, device=device).reshape(value.shape)


def as_tensors(values: Sequence[Any]) -> list[Any]:
    """All values with every Host made a tensor, on the device of the first tensor among them."""
    like = next((v for v in values if isinstance(v, torch.Tensor)), None)
    return [as_tensor(v, like) for v in values]


def numbers(value: Any) -> list[Any]:
    """The elements of a Host as Python numbers, flattened; of a tensor too, which then depends on data.

    torch.export knows no more of the elements of a tensor than that each is an integer.
    """
    if isinstance(value, Host):
        return list(value.items)
    return [e.item() for e in value.reshape(-1).unbind()]


def sizes(value: Any) -> list[Any]:
    """Like :func:`numbers`, for elements that are sizes, none of them negative."""
    found = numbers(value)
    if not isinstance(value, Host):
        for size in found:
            torch._check(size >= 0)
    return found


def number(value: Any) -> Any:
    """The one element of a Host or of a tensor."""
    (found,) = numbers(value)
    return found


def sizes_of(tensor: torch.Tensor | Host) -> tuple[Any, ...]:
    """The shape of a tensor or of a Host."""
    return tuple(tensor.shape)


def host_of(array: Any, dtype: torch.dtype) -> Host:
    """The Host of a small numpy array."""
    return Host(tuple(array.reshape(-1).tolist()), tuple(array.shape), dtype)


def dtype_of(code: int) -> torch.dtype:
    """torch's dtype for an ONNX data type.

    Raises:
        NotImportable: torch has none.
    """
    try:
        return to_torch_dtype(ir.DataType(code))
    except (TypeError, ValueError):
        raise NotImportable(f"torch has no data type for {ir.DataType(code).name.lower()}") from None


def count(shape: Sequence[Any]) -> Any:
    """The number of elements of a shape."""
    return math.prod(shape)


def fits(shape: Sequence[Any]) -> bool:
    """Whether a tensor of this shape is small enough, and known enough, to be a Host."""
    return all(isinstance(d, int) for d in shape) and math.prod(shape) <= LIMIT
