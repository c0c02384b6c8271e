"""ONNX Runtime's own operators (com.microsoft) that are a step or two of others: with an activation, a bias, a sum before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.operators.convolution import conv
from graphopt.importing.operators.quantization import dequantize_linear, dynamic_quantize_linear, matmul_integer, quantize_linear
from graphopt.importing.table import operator

DOMAIN = "com.microsoft"

#: Name -> the function, its parameters in the order in which FusedConv lists them, and the defaults of those.
_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "Clip": (torch.clamp, (-3.4028234663852886e38, 3.4028234663852886e38)),
    "Elu": (functional.elu, (1.0,)),
    "HardSigmoid": (lambda x, a, b: (a * x + b).clamp(0, 1), (0.2, 0.5)),
    "HardSwish": (functional.hardswish, ()),
    "LeakyRelu": (functional.leaky_relu, (0.01,)),
    "Relu": (torch.relu, ()),
    "Selu": (lambda x, a, g: g * torch.where(x > 0, x, a * torch.expm1(x)), (1.67326319217681884765625, 1.05070102214813232421875)),
    "Sigmoid": (torch.sigmoid, ()),
    "Softplus": (functional.softplus, ()),
    "Softsign": (functional.softsign, ()),
    "Tanh": (torch.tanh, ()),
    "ThresholdedRelu": (lambda x, a: torch.where(x > a, x, torch.zeros_like(x)), (1.0,)),
}


def _activated(x: Tensor, name: str, given: Sequence[float | None]) -> Tensor:
    function, defaults = _ACTIVATIONS[name]
    values = [g if g is not None else d for g, d in zip([*given, *[None] * len(defaults)], defaults, strict=False)]
    return function(x, *values)


def _refuse_activation(attributes: dict[str, Any]) -> str | None:
    name = attributes.get("activation", "Relu")
    return None if name in _ACTIVATIONS else f"its activation '{name}' is not known"


@operator("FusedConv", domain=DOMAIN, refuse=_refuse_activation)
def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    more: Tensor | None = None,
    *,
    activation: str | None = None,
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """A convolution, what is added to it, and an activation of the sum."""
    y = conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    y = y if more is None else y + more
    return y if not activation else _activated(y, activation, activation_params or ())


@operator("FusedGemm", domain=DOMAIN, refuse=_refuse_activation)
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str | None = None,
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    y = (a.T if transA else a) @ (b.T if transB else b)
    y = y if alpha == 1 else y * alpha
    if c is not None:
        y = y + (c if beta == 1 else c * beta)
    second = activation_gamma if activation == "Selu" else activation_beta
    return y if not activation else _activated(y, activation, (activation_alpha, second))


def _refuse_batches(attributes: dict[str, Any]) -> str | None:
    moved = attributes.get("transBatchA") or attributes.get("transBatchB")
    return "a batch that is moved (transBatchA, transBatchB) is not supported" if moved else None


@operator("FusedMatMul", domain=DOMAIN, refuse=_refuse_batches)
def fused_matmul(
    a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0, transBatchB: int = 0
) -> Tensor:
    left = a.transpose(-1, -2) if transA and a.dim() > 1 else a
    right = b.transpose(-1, -2) if transB and b.dim() > 1 else b
    y = torch.matmul(left, right)
    return y if alpha == 1 else y * alpha


@operator("Gelu", domain=DOMAIN)
def gelu(x: Tensor) -> Tensor:
    return functional.gelu(x)


@operator("BiasGelu", domain=DOMAIN)
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(x + bias)


@operator("FastGelu", domain=DOMAIN)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=DOMAIN)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@operator("BiasAdd", domain=DOMAIN)
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    return x + bias + skip


@operator("SkipLayerNormalization", domain=DOMAIN, several=True)
def skip_layer_normalization(
    x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None, *, epsilon: float = 1e-12
) -> tuple[Tensor | None, ...]:
    """The sum normalized, no statistics (ONNX Runtime gives none on CPUs either), and the sum."""
    total = x + skip if bias is None else x + skip + bias
    return functional.layer_norm(total, [total.shape[-1]], scale, shift, epsilon), None, None, total


@operator("SkipSimplifiedLayerNormalization", domain=DOMAIN, several=True)
def skip_rms_normalization(
    x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None, *, epsilon: float = 1e-12
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    return functional.rms_norm(total, [total.shape[-1]], scale, epsilon), None, None, total


@operator("SimplifiedLayerNormalization", several=True)
def simplified_layer_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Tensor, Tensor]:
    """ONNX Runtime's RMS normalization, which it keeps in the domain of ONNX; and the inverse of what it divides by."""
    along = list(range(axis % x.dim(), x.dim()))
    wide = x.float() if stash_type == 1 else x
    inverse = torch.rsqrt((wide * wide).mean(along, keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale, inverse


@operator("EmbedLayerNormalization", domain=DOMAIN, several=True)
def embed_layer_normalization(
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    positions: Tensor,
    kinds: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    places: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of words, positions and segments added up and normalized; how many words the mask counts; the sum."""
    at = torch.arange(ids.shape[1], device=ids.device)[None] if places is None else places.to(torch.int64)
    total = functional.embedding(ids.to(torch.int64), words) + functional.embedding(at, positions)
    if segments is not None and kinds is not None:
        total = total + functional.embedding(segments.to(torch.int64), kinds)
    count = torch.zeros(ids.shape[0], dtype=torch.int32, device=ids.device) if mask is None else (mask != 0).sum(1, dtype=torch.int32)
    return functional.layer_norm(total, [total.shape[-1]], scale, shift, epsilon), count, total


@operator("QuantizeLinear", domain=DOMAIN)
def quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1) -> Tensor:
    return quantize_linear(x, scale, zero, axis=axis)


@operator("DequantizeLinear", domain=DOMAIN)
def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1) -> Tensor:
    return dequantize_linear(x, scale, zero, axis=axis)


@operator("MatMulIntegerToFloat", domain=DOMAIN)
def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    y = matmul_integer(a, b, a_zero, b_zero).to(a_scale.dtype) * (a_scale * b_scale)
    return y if bias is None else y + bias


@operator("DynamicQuantizeMatMul", domain=DOMAIN)
def dynamic_quantize_matmul(a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The first matrix is quantized as a whole, by what it holds."""
    narrow, scale, zero = dynamic_quantize_linear(a)
    return matmul_integer_to_float(narrow, b, scale, b_scale, zero, b_zero, bias)


@operator("QLinearAdd", domain=DOMAIN)
def qlinear_add(
    a: Tensor, a_scale: Tensor, a_zero: Tensor | None, b: Tensor, b_scale: Tensor, b_zero: Tensor | None, scale: Tensor, zero: Tensor
) -> Tensor:
    return quantize_linear(dequantize_linear(a, a_scale, a_zero) + dequantize_linear(b, b_scale, b_zero), scale, zero)


@operator("QLinearMul", domain=DOMAIN)
def qlinear_mul(
    a: Tensor, a_scale: Tensor, a_zero: Tensor | None, b: Tensor, b_scale: Tensor, b_zero: Tensor | None, scale: Tensor, zero: Tensor
) -> Tensor:
    return quantize_linear(dequantize_linear(a, a_scale, a_zero) * dequantize_linear(b, b_scale, b_zero), scale, zero)


def unpacked(data: Tensor, bits: int) -> Tensor:
    """Numbers of 4 bits from bytes, the lower half first; of 8 bits as they are."""
    return data if bits == 8 else torch.stack([data & 15, data >> 4], -1).flatten(-2)


def _refuse_bits(attributes: dict[str, Any]) -> str | None:
    bits = attributes.get("bits", 4)
    return None if bits in (4, 8) else f"weights of {bits} bits are not supported"


@operator("MatMulNBits", domain=DOMAIN, refuse=_refuse_bits)
def matmul_bits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    order: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
) -> Tensor:
    """Weights [N, blocks, bytes of a block], a scale and a zero point for each block; without any, that is half of the range."""
    blocks = -(-K // block_size)
    weights = unpacked(b.reshape(N, blocks, -1), bits).to(scales.dtype)
    if zeros is None:
        middle: Any = 2 ** (bits - 1)
    elif zeros.is_floating_point():
        middle = zeros.reshape(N, blocks, 1)
    else:
        middle = unpacked(zeros.reshape(N, -1), bits)[:, :blocks, None].to(scales.dtype)
    weights = ((weights - middle) * scales.reshape(N, blocks, 1)).reshape(N, -1)[:, :K]
    return functional.linear(a, weights.to(a.dtype), bias)
