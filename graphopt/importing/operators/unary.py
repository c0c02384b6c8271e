"""Functions of one element each, and casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphopt.importing import host
from graphopt.importing.operators.elementwise import in_wide
from graphopt.importing.table import operator
from graphopt.importing.values import Host, NotImportable, as_tensor, dtype_of, is_host

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)


def _unary(x: Any, on_items: Callable[[Any], Any], on_tensor: Callable[[Tensor], Tensor]) -> Any:
    return host.elementwise(on_items, x) if is_host(x) else in_wide(on_tensor, x)


@operator("Identity", hosts=True)
def identity(x: Any) -> Any:
    return x


@operator("Neg", hosts=True)
def neg(x: Any, *, consumed_inputs: Any = None) -> Any:
    return _unary(x, lambda e: -e, torch.neg)


@operator("Abs", hosts=True)
def absolute(x: Any, *, consumed_inputs: Any = None) -> Any:
    return _unary(x, abs, torch.abs)


@operator("Sign", since=9)
def sign(x: Tensor) -> Tensor:
    """The sign of a NaN is NaN, which torch.sign takes for zero."""
    found = in_wide(torch.sign, x)
    return torch.where(torch.isnan(x), x, found) if x.dtype.is_floating_point else found


@operator("Floor", hosts=True)
def floor(x: Any, *, consumed_inputs: Any = None) -> Any:
    return _unary(x, lambda e: host.as_float(math.floor(e)) if _finite(e) else e, torch.floor)


@operator("Ceil", hosts=True)
def ceil(x: Any, *, consumed_inputs: Any = None) -> Any:
    return _unary(x, lambda e: host.as_float(math.ceil(e)) if _finite(e) else e, torch.ceil)


def _finite(item: Any) -> bool:
    return not isinstance(item, float) or math.isfinite(item)


@operator("Round", since=11)
def round_(x: Tensor) -> Tensor:
    """Halves go to the even neighbour, as in torch."""
    return torch.round(x)


@operator("Sqrt", hosts=True)
def sqrt(x: Any, *, consumed_inputs: Any = None) -> Any:
    if is_host(x) and all(isinstance(i, float) and i >= 0 for i in x.items):
        return host.elementwise(math.sqrt, x)
    return torch.sqrt(as_tensor(x))


@operator("Reciprocal", hosts=True)
def reciprocal(x: Any, *, consumed_inputs: Any = None) -> Any:
    return host.elementwise(lambda e: host.divided(1.0, e), x) if is_host(x) else torch.reciprocal(x)


@operator("Exp")
def exp(x: Tensor, *, consumed_inputs: Any = None) -> Tensor:
    return torch.exp(x)


@operator("Log")
def log(x: Tensor, *, consumed_inputs: Any = None) -> Tensor:
    return torch.log(x)


@operator("Erf", since=9)
def erf(x: Tensor) -> Tensor:
    return torch.erf(x) if x.dtype.is_floating_point else torch.erf(x.double()).to(x.dtype)


@operator("Sin", since=7)
def sin(x: Tensor) -> Tensor:
    return torch.sin(x)


@operator("Cos", since=7)
def cos(x: Tensor) -> Tensor:
    return torch.cos(x)


@operator("Tan", since=7)
def tan(x: Tensor) -> Tensor:
    return torch.tan(x)


@operator("Asin", since=7)
def asin(x: Tensor) -> Tensor:
    return torch.asin(x)


@operator("Acos", since=7)
def acos(x: Tensor) -> Tensor:
    return torch.acos(x)


@operator("Atan", since=7)
def atan(x: Tensor) -> Tensor:
    return torch.atan(x)


@operator("Sinh", since=9)
def sinh(x: Tensor) -> Tensor:
    return torch.sinh(x)


@operator("Cosh", since=9)
def cosh(x: Tensor) -> Tensor:
    return torch.cosh(x)


@operator("Asinh", since=9)
def asinh(x: Tensor) -> Tensor:
    return torch.asinh(x)


@operator("Acosh", since=9)
def acosh(x: Tensor) -> Tensor:
    return torch.acosh(x)


@operator("Atanh", since=9)
def atanh(x: Tensor) -> Tensor:
    return torch.atanh(x)


@operator("IsNaN", since=9)
def is_nan(x: Tensor) -> Tensor:
    return torch.isnan(x)


@operator("IsInf", since=10)
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if not detect_negative and not detect_positive:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isneginf(x) if detect_negative else torch.isposinf(x)


@operator("Det", since=11)
def det(x: Tensor) -> Tensor:
    return torch.linalg.det(x)


def _no_such_type(attributes: dict[str, Any]) -> str | None:
    try:
        dtype_of(attributes["to"])
    except NotImportable as fault:
        return str(fault)
    except KeyError:
        return "it does not say what to cast to"
    return None


@operator("Cast", since=6, hosts=True, refuse=_no_such_type)
def cast(x: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    return _cast(x, dtype_of(to), saturate)


@operator("CastLike", since=15, hosts=True)
def cast_like(x: Any, target: Tensor | Host, *, saturate: int = 1, round_mode: str = "up") -> Any:
    return _cast(x, target.dtype, saturate)


def _cast(x: Any, dtype: torch.dtype, saturate: int) -> Any:
    if is_host(x):
        if dtype in (torch.int64, torch.int32, torch.bool, torch.float32, torch.float64) and all(_finite(i) for i in x.items):
            return host.cast(x, dtype)
        x = as_tensor(x)
    if dtype in _FLOAT8 and saturate:
        most = torch.finfo(dtype).max
        x = torch.where(torch.isnan(x), x, x.clamp(min=-most, max=most))
    return x.to(dtype)


@operator("BitCast", since=26, refuse=_no_such_type)
def bit_cast(x: Tensor, *, to: int) -> Tensor:
    return x.view(dtype_of(to))
