"""Quantization: to integers and back, and arithmetic on integers, which is exact.

Sums of products of integers are computed in float64, where every one that fits into int32 is exact in any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.importing.operators.convolution import conv
from graphopt.importing.table import operator
from graphopt.importing.values import NotImportable, dtype_of

_NARROW = (torch.int8, torch.uint8, torch.int16, torch.uint16)


def _placed(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point so that it goes with x: one for all, one for each index of an axis, or one for each block."""
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if parameter.dim() == 0 or (parameter.dim() == 1 and isinstance(parameter.shape[0], int) and parameter.shape[0] == 1):
        return parameter.reshape(())
    if parameter.dim() == 1:
        shape = [1] * x.dim()
        shape[axis] = -1
        return parameter.reshape(shape)
    return parameter


def saturated(x: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Numbers rounded half to even, moved by a zero point and kept within an integer type."""
    limits = torch.iinfo(dtype)
    moved = torch.round(x).float()
    if zero is not None:
        moved = moved + zero.float()
    return moved.clamp(limits.min, limits.max).to(dtype)


def _refuse(attributes: dict[str, Any]) -> str | None:
    for name in ("output_dtype", "precision"):
        if attributes.get(name):
            try:
                dtype_of(attributes[name])
            except NotImportable as reason:
                return str(reason)
    return None


@operator("QuantizeLinear", since=10, refuse=_refuse)
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """The quotient is rounded half to even before the zero point is added."""
    target = zero.dtype if zero is not None else dtype_of(output_dtype) if output_dtype else torch.uint8
    if target not in _NARROW:
        raise NotImportable(f"quantizing to {str(target).removeprefix('torch.')} is not supported")
    exact = dtype_of(precision) if precision else scale.dtype
    quotient = x.to(exact) / _placed(scale, x, axis, block_size).to(exact)
    return saturated(quotient, None if zero is None else _placed(zero, x, axis, block_size), target)


@operator("DequantizeLinear", since=10, refuse=_refuse)
def dequantize_linear(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Tensor:
    """Types of 16 bits are multiplied in float32: a difference of two integers need not fit them."""
    target = dtype_of(output_dtype) if output_dtype else scale.dtype
    wide = torch.float32 if x.is_floating_point() else torch.int32
    moved = x.to(wide)
    if zero is not None:
        moved = moved - _placed(zero, x, axis, block_size).to(wide)
    exact = torch.float64 if target == torch.float64 else torch.float32
    return (moved.to(exact) * _placed(scale, x, axis, block_size).to(exact)).to(target)


@operator("DynamicQuantizeLinear", since=11, several=True)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The range of uint8 is laid over that of the data, 0 included; data that are 0 alone get the scale 1."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((0 - low / scale).clamp(0, 255)).to(torch.uint8)
    return saturated(x / scale, zero, torch.uint8), scale, zero


def _rows(parameter: Tensor) -> Tensor:
    """One for each row of the first matrix."""
    return parameter.reshape(-1, 1) if parameter.dim() == 1 and parameter.shape[0] != 1 else parameter


def _difference(x: Tensor, zero: Tensor | None) -> Tensor:
    return x.double() if zero is None else x.double() - zero.double()


def _wrapped(x: Tensor) -> Tensor:
    """As int32, which wraps around where a sum does not fit."""
    return x.to(torch.int64).to(torch.int32)


@operator("MatMulInteger", since=10)
def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    return _wrapped(_difference(a, None if a_zero is None else _rows(a_zero)) @ _difference(b, b_zero))


@operator("QLinearMatMul", since=10)
def qlinear_matmul(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor, y_scale: Tensor, y_zero: Tensor
) -> Tensor:
    total = _difference(a, _rows(a_zero)) @ _difference(b, b_zero)
    factor = _rows(a_scale).float() * b_scale.float() / _rows(y_scale).float()
    return saturated(total.float() * factor, _rows(y_zero), y_zero.dtype)


def _channels(parameter: Tensor, rank: int, axis: int) -> Tensor:
    """One for each output channel, along an axis of a tensor."""
    if parameter.dim() != 1 or parameter.shape[0] == 1:
        return parameter.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return parameter.reshape(shape)


@operator("ConvInteger", since=10)
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None = None,
    w_zero: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Padding is the zero point, which is 0 once it has been taken off."""
    data = _difference(x, None if x_zero is None else x_zero.reshape(()))
    weights = _difference(w, None if w_zero is None else _channels(w_zero, w.dim(), 0))
    return _wrapped(conv(data, weights, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides))


@operator("QLinearConv", since=10)
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The bias is an integer too, of the scale of the products."""
    weights = _difference(w, _channels(w_zero, w.dim(), 0))
    bias = None if b is None else b.double()
    total = conv(
        _difference(x, x_zero.reshape(())), weights, bias, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides
    )
    factor = x_scale.reshape(()) * _channels(w_scale, x.dim(), 1) / y_scale.reshape(())
    return saturated(total.float() * factor, y_zero.reshape(()), y_zero.dtype)
