"""Reductions along axes: sums, means, extremes, norms, and where the extremes are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphopt.importing.table import operator
from graphopt.importing.values import Host, as_tensor, is_host, numbers

_Reduce = Callable[[Tensor, list[int]], Tensor]


def _sum(x: Tensor, axes: list[int]) -> Tensor:
    return torch.sum(x, axes, keepdim=True, dtype=x.dtype)


def _count(x: Tensor, axes: list[int]) -> Any:
    return math.prod(x.shape[a] for a in axes)


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    if x.is_floating_point() or x.is_complex():
        return torch.mean(x, axes, keepdim=True)
    return torch.div(_sum(x, axes), _count(x, axes), rounding_mode="trunc").to(x.dtype)


def _lowest(dtype: torch.dtype) -> Any:
    return False if dtype == torch.bool else -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> Any:
    return True if dtype == torch.bool else math.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def _extreme(function: Callable[..., Tensor], of_nothing: Callable[[torch.dtype], Any]) -> _Reduce:
    def reduce(x: Tensor, axes: list[int]) -> Tensor:
        if any(isinstance(x.shape[a], int) and x.shape[a] == 0 for a in axes):
            return x.new_full([1 if i in axes else d for i, d in enumerate(x.shape)], of_nothing(x.dtype))
        if x.dtype in (torch.uint16, torch.uint32):  # torch has these types for storage alone
            return function(x.to(torch.int64), axes, keepdim=True).to(x.dtype)
        return function(x, axes, keepdim=True)

    return reduce


def _prod(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = torch.prod(x, axis, keepdim=True, dtype=x.dtype)
    return x


def _through_float(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A root or a logarithm, cut back to the integers where x holds some."""
    return function(x) if x.is_floating_point() else function(x.double()).to(x.dtype)


def _l1(x: Tensor, axes: list[int]) -> Tensor:
    return _sum(x.abs(), axes)


def _l2(x: Tensor, axes: list[int]) -> Tensor:
    return torch.linalg.vector_norm(x, 2, axes, keepdim=True) if x.is_floating_point() else _through_float(torch.sqrt, _sum(x * x, axes))


def _log_sum(x: Tensor, axes: list[int]) -> Tensor:
    return _through_float(torch.log, _sum(x, axes))


def _log_sum_exp(x: Tensor, axes: list[int]) -> Tensor:
    return _through_float(lambda y: torch.logsumexp(y, axes, keepdim=True), x)


def _sum_square(x: Tensor, axes: list[int]) -> Tensor:
    return _sum(x * x, axes)


#: With no axis at all a reduction leaves each element as it is, but for what it does to the elements themselves.
_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceLogSum": lambda x: _through_float(torch.log, x),
    "ReduceSumSquare": lambda x: x * x,
}


def _reduced(name: str, reduce: _Reduce, x: Any, axes: list[int] | None, keepdims: int, noop: int) -> Any:
    if is_host(x):
        found = _on_host(name, x, axes, keepdims, noop)
        if found is not None:
            return found
        x = as_tensor(x)
    if not axes and noop:
        return _ELEMENTWISE.get(name, lambda y: y)(x)
    rank = x.dim()
    places = sorted({a % rank for a in axes}) if axes and rank else list(range(rank))
    if not places:  # a tensor of rank 0: one element, which is its own sum
        return reduce(x.reshape(1), [0]).reshape(())
    kept = reduce(x, places)
    return kept if keepdims else kept.squeeze(places)


#: What is done to the elements of a Host. A symbolic size has no other way to be a product of sizes.
_ON_ITEMS: dict[str, Callable[[tuple], Any]] = {"ReduceProd": math.prod, "ReduceSum": sum, "ReduceMax": None, "ReduceMin": None}


def _on_host(name: str, x: Host, axes: list[int] | None, keepdims: int, noop: int) -> Host | None:
    if name not in _ON_ITEMS or len(x.shape) > 1 or not x.items or (not axes and noop):
        return None
    if x.dtype != torch.int64 and any(not isinstance(i, int) for i in x.items):
        return None
    if name == "ReduceMax":
        item = _folded(torch.sym_max, x.items)
    elif name == "ReduceMin":
        item = _folded(torch.sym_min, x.items)
    else:
        item = _ON_ITEMS[name](x.items)
    return Host((item,), (1,) * len(x.shape) if keepdims else (), x.dtype)


def _folded(function: Callable[[Any, Any], Any], items: tuple) -> Any:
    found = items[0]
    for item in items[1:]:
        found = function(found, item)
    return found


def _enter(name: str, reduce: _Reduce, axes_are_an_input: int) -> None:
    def by_attribute(x: Any, *, axes: list[int] | None = None, keepdims: int = 1) -> Any:
        return _reduced(name, reduce, x, axes, keepdims, 0)

    def by_input(x: Any, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        return _reduced(name, reduce, x, None if axes is None else numbers(axes), keepdims, noop_with_empty_axes)

    for function, since in ((by_attribute, 1), (by_input, axes_are_an_input)):
        function.__name__ = function.__qualname__ = f"{name}_{since}"
        # Under its own name in this module, where a module that is read from a file looks for it.
        globals()[function.__name__] = operator(name, since=since, hosts=True)(function)


_enter("ReduceSum", _sum, 13)
_enter("ReduceMean", _mean, 18)
_enter("ReduceMax", _extreme(torch.amax, _lowest), 18)
_enter("ReduceMin", _extreme(torch.amin, _highest), 18)
_enter("ReduceProd", _prod, 18)
_enter("ReduceL1", _l1, 18)
_enter("ReduceL2", _l2, 18)
_enter("ReduceLogSum", _log_sum, 18)
_enter("ReduceLogSumExp", _log_sum_exp, 18)
_enter("ReduceSumSquare", _sum_square, 18)


def _place(x: Tensor, axis: int, keepdims: int, last: int, function: Callable[..., Tensor]) -> Tensor:
    if x.dim() == 0:
        return torch.zeros((), dtype=torch.int64, device=x.device)
    if last:  # the first one from the back; torch takes the first of several
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=bool(keepdims))
    return function(x, axis, keepdim=bool(keepdims))


@operator("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _place(x, axis, keepdims, select_last_index, torch.argmax)


@operator("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _place(x, axis, keepdims, select_last_index, torch.argmin)


def _cumulated(x: Tensor, axis: Any, exclusive: int, reverse: int, function: Callable[..., Tensor], start: int) -> Tensor:
    (along,) = numbers(axis)
    along %= x.dim()
    if reverse:
        x = x.flip(along)
    if exclusive:  # each element is that of the one before
        first = torch.full_like(x.narrow(along, 0, 1), start)
        x = torch.cat([first, x.narrow(along, 0, x.shape[along] - 1)], along)
    y = function(x, along, dtype=x.dtype)
    return y.flip(along) if reverse else y


@operator("CumSum", since=11, hosts=True)
def cum_sum(x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulated(as_tensor(x), axis, exclusive, reverse, torch.cumsum, 0)


@operator("CumProd", since=26, hosts=True)
def cum_prod(x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulated(as_tensor(x), axis, exclusive, reverse, torch.cumprod, 1)
