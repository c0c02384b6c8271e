"""Arithmetic of two or more tensors that broadcast, and rounding."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphopt.importing import host
from graphopt.importing.table import operator
from graphopt.importing.values import as_tensor, is_host

#: Integer types that torch stores and does not compute with: int64 holds what they compute, modulo their size.
WIDE = (torch.uint16, torch.uint32, torch.uint64)


def operand(value: Any, other: Any) -> Any:
    """What stands beside ``other`` in an operation: a float or int scalar as a number, any other Host as a tensor."""
    if not isinstance(other, Tensor):
        return as_tensor(value)
    plain = is_host(value) and not value.shape and isinstance(value.items[0], (int, float)) and value.dtype is not torch.bool
    if plain and other.dtype.is_floating_point == value.dtype.is_floating_point:
        return value.items[0]
    return as_tensor(value, other)


def binary(a: Any, b: Any, on_items: Callable[..., Any], on_tensors: Callable[..., Any], dtype: torch.dtype | None = None) -> Any:
    """An operation of two values: on Hosts where both are and the result fits, else on tensors."""
    if is_host(a) and is_host(b):
        found = host.elementwise(on_items, a, b, dtype=dtype)
        if found is not None:
            return found
        a, b = as_tensor(a), as_tensor(b)
    a, b = operand(a, b), operand(b, a)
    return in_wide(on_tensors, a, b)


def in_wide(function: Callable[..., Tensor], *operands: Any) -> Tensor:
    """A function of tensors and numbers, in int64 where torch does not compute with their type."""
    kind = next((o.dtype for o in operands if isinstance(o, Tensor) and o.dtype in WIDE), None)
    if kind is None:
        return function(*operands)
    found = function(*(o.to(torch.int64) if isinstance(o, Tensor) and o.dtype in WIDE else o for o in operands))
    return found.to(kind) if found.dtype is torch.int64 else found


def placed(b: Any, a: Any, broadcast: int, axis: int | None) -> Any:
    """The second operand of an operator before version 7, which is aligned to ``axis`` of the first."""
    if not broadcast or axis is None or (is_host(b) and not b.shape):
        return b
    a_rank, b = len(a.shape), as_tensor(b, a if isinstance(a, Tensor) else None)
    after = a_rank - (axis + a_rank if axis < 0 else axis) - b.dim()
    return b.reshape([*b.shape, *[1] * after])


def _divide(a: Any, b: Any) -> Any:
    kind = (a if isinstance(a, Tensor) else b).dtype
    if kind.is_floating_point or kind.is_complex:
        return a / b
    a = a if isinstance(a, Tensor) else torch.scalar_tensor(a, dtype=kind, device=b.device)
    return torch.div(a, b, rounding_mode="trunc")


@operator("Add", since=7, hosts=True)
def add(a: Any, b: Any) -> Any:
    return binary(a, b, lambda x, y: x + y, lambda x, y: x + y)


@operator("Sub", since=7, hosts=True)
def sub(a: Any, b: Any) -> Any:
    return binary(a, b, lambda x, y: x - y, lambda x, y: x - y)


@operator("Mul", since=7, hosts=True)
def mul(a: Any, b: Any) -> Any:
    return binary(a, b, lambda x, y: x * y, lambda x, y: x * y)


@operator("Div", since=7, hosts=True)
def div(a: Any, b: Any) -> Any:
    return binary(a, b, host.divided, _divide)


@operator("Add", hosts=True)
@operator("Add", since=6, hosts=True)
def add_legacy(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None, consumed_inputs: Any = None) -> Any:
    return add(a, placed(b, a, broadcast, axis))


@operator("Sub", hosts=True)
@operator("Sub", since=6, hosts=True)
def sub_legacy(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None, consumed_inputs: Any = None) -> Any:
    return sub(a, placed(b, a, broadcast, axis))


@operator("Mul", hosts=True)
@operator("Mul", since=6, hosts=True)
def mul_legacy(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None, consumed_inputs: Any = None) -> Any:
    return mul(a, placed(b, a, broadcast, axis))


@operator("Div", hosts=True)
@operator("Div", since=6, hosts=True)
def div_legacy(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None, consumed_inputs: Any = None) -> Any:
    return div(a, placed(b, a, broadcast, axis))


@operator("Mod", since=10, hosts=True)
def mod(a: Any, b: Any, *, fmod: int = 0) -> Any:
    """The remainder has the sign of the divisor; with ``fmod``, that of the dividend."""
    if fmod:
        return binary(a, b, lambda x, y: x - y * host.divided(x, y) if isinstance(x, int) else math.fmod(x, y), _tensors(torch.fmod))
    return binary(a, b, lambda x, y: x % y, torch.remainder)


@operator("Pow", since=1)
@operator("Pow", since=7)
def power(x: Tensor, y: Tensor, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
    y = placed(y, x, broadcast, axis)
    return _power(x, y)


@operator("Pow", since=12, hosts=True)
def pow_(x: Any, y: Any) -> Any:
    if is_host(y) and not y.shape and not is_host(x):
        return _power(x, y.items[0])
    if is_host(x) and is_host(y):
        found = host.elementwise(lambda a, b: a**b, x, y)
        if found is not None:
            return host.cast(found, x.dtype)
    y = as_tensor(y)
    return _power(as_tensor(x, y), y)


def _power(x: Tensor, y: Tensor | float) -> Tensor:
    return in_wide(torch.pow, x, y).to(x.dtype)


def _variadic(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *values: functools.reduce(function, values)


@operator("Max", hosts=True)
def maximum(*values: Any, consumed_inputs: Any = None) -> Any:
    return _variadic(lambda a, b: binary(a, b, _largest, _tensors(torch.maximum)))(*values)


@operator("Min", hosts=True)
def minimum(*values: Any, consumed_inputs: Any = None) -> Any:
    return _variadic(lambda a, b: binary(a, b, _smallest, _tensors(torch.minimum)))(*values)


@operator("Sum", hosts=True)
def total(*values: Any, consumed_inputs: Any = None) -> Any:
    return _variadic(add)(*values)


@operator("Mean")
def mean(*values: Tensor, consumed_inputs: Any = None) -> Tensor:
    return _variadic(torch.add)(*values) / len(values)


def _largest(a: Any, b: Any) -> Any:
    return math.nan if a != a or b != b else torch.sym_max(a, b)


def _smallest(a: Any, b: Any) -> Any:
    return math.nan if a != a or b != b else torch.sym_min(a, b)


def _tensors(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """For functions of torch that take no numbers."""

    def call(a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        return function(*(v if isinstance(v, Tensor) else torch.scalar_tensor(v, dtype=like.dtype, device=like.device) for v in (a, b)))

    return call


@operator("Clip", hosts=True)
def clip_attributes(x: Any, *, min: float | None = None, max: float | None = None, consumed_inputs: Any = None) -> Any:
    return torch.clamp(as_tensor(x), min, max) if min is not None or max is not None else x


@operator("Clip", since=11, hosts=True)
def clip(x: Any, low: Any = None, high: Any = None) -> Any:
    """A NaN stays one; where the bounds contradict each other the upper one holds."""
    if low is not None:
        x = maximum(x, low)
    return minimum(x, high) if high is not None else x


@operator("BitShift", since=11)
def bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    """Shifts by all the bits that there are, or more: none is left, or the sign alone of a signed number to the right."""
    bits = x.element_size() * 8
    wide, by = x.to(torch.int64), y.to(torch.int64)
    if direction == "RIGHT":
        moved = _right(wide, by) if x.dtype is torch.uint64 else wide >> by.clamp(max=63)
    else:
        moved = torch.where(by < bits, wide << by.clamp(max=63), 0)
    return moved.to(x.dtype)


def _right(wide: Tensor, by: Tensor) -> Tensor:
    """A shift that fills with zeros also from the top bit, of an int64 that stands for an uint64."""
    mask = torch.where(by > 0, (torch.ones_like(wide) << (64 - by).clamp(0, 63)) - 1, -1)
    return torch.where(by < 64, (wide >> by.clamp(max=63)) & mask, 0)


@operator("BitwiseAnd", since=18)
def bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    return in_wide(torch.bitwise_and, a, b)


@operator("BitwiseOr", since=18)
def bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    return in_wide(torch.bitwise_or, a, b)


@operator("BitwiseXor", since=18)
def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    return in_wide(torch.bitwise_xor, a, b)


@operator("BitwiseNot", since=18)
def bitwise_not(x: Tensor) -> Tensor:
    return in_wide(torch.bitwise_not, x)
