"""Comparisons, logic, and selection by a condition."""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphopt.importing import host
from graphopt.importing.operators.elementwise import binary, placed
from graphopt.importing.table import operator
from graphopt.importing.values import as_tensors, is_host


def _compare(a: Any, b: Any, on_items: Callable[..., Any], on_tensors: Callable[..., Any]) -> Any:
    return binary(a, b, on_items, on_tensors, dtype=torch.bool)


@operator("Equal", since=7, hosts=True)
def equal(a: Any, b: Any) -> Any:
    return _compare(a, b, python.eq, lambda x, y: x == y)


@operator("Less", since=7, hosts=True)
def less(a: Any, b: Any) -> Any:
    return _compare(a, b, python.lt, lambda x, y: x < y)


@operator("Greater", since=7, hosts=True)
def greater(a: Any, b: Any) -> Any:
    return _compare(a, b, python.gt, lambda x, y: x > y)


@operator("LessOrEqual", since=12, hosts=True)
def less_or_equal(a: Any, b: Any) -> Any:
    return _compare(a, b, python.le, lambda x, y: x <= y)


@operator("GreaterOrEqual", since=12, hosts=True)
def greater_or_equal(a: Any, b: Any) -> Any:
    return _compare(a, b, python.ge, lambda x, y: x >= y)


@operator("Equal", hosts=True)
def equal_legacy(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return equal(a, placed(b, a, broadcast, axis))


@operator("Less", hosts=True)
def less_legacy(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return less(a, placed(b, a, broadcast, axis))


@operator("Greater", hosts=True)
def greater_legacy(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return greater(a, placed(b, a, broadcast, axis))


@operator("And", hosts=True)
def and_(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return _compare(a, placed(b, a, broadcast, axis), lambda x, y: host.as_bool(x) and host.as_bool(y), torch.logical_and)


@operator("Or", hosts=True)
def or_(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return _compare(a, placed(b, a, broadcast, axis), lambda x, y: host.as_bool(x) or host.as_bool(y), torch.logical_or)


@operator("Xor", hosts=True)
def xor(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None) -> Any:
    return _compare(a, placed(b, a, broadcast, axis), lambda x, y: host.as_bool(x) != host.as_bool(y), torch.logical_xor)


@operator("Not", hosts=True)
def not_(x: Any) -> Any:
    return host.elementwise(lambda e: not host.as_bool(e), x) if is_host(x) else torch.logical_not(x)


@operator("Where", since=9, hosts=True)
def where(condition: Any, x: Any, y: Any) -> Any:
    if is_host(condition) and is_host(x) and is_host(y):
        found = host.elementwise(lambda c, a, b: a if host.as_bool(c) else b, condition, x, y, dtype=x.dtype)
        if found is not None:
            return found
    chosen: tuple[Tensor, ...] = tuple(as_tensors((condition, x, y)))
    return torch.where(*chosen)
