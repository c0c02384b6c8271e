"""Activations: one tensor in, one of the same shape and dtype out. And Dropout, which does nothing in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.operators.elementwise import placed
from graphopt.importing.table import operator
from graphopt.importing.values import Host, NotImportable, as_tensor, number


@operator("Relu")
def relu(x: Tensor, *, consumed_inputs: Any = None) -> Tensor:
    return torch.relu(x)


@operator("Sigmoid")
def sigmoid(x: Tensor, *, consumed_inputs: Any = None) -> Tensor:
    return torch.sigmoid(x)


@operator("Tanh")
def tanh(x: Tensor, *, consumed_inputs: Any = None) -> Tensor:
    return torch.tanh(x)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01, consumed_inputs: Any = None) -> Tensor:
    return functional.leaky_relu(x, alpha)


@operator("PRelu")
@operator("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor, *, consumed_inputs: Any = None) -> Tensor:
    """A slope for each channel is torch's own; any other broadcasts."""
    if x.dim() > 1 and slope.dim() == x.dim() - 1 and slope.shape[0] == x.shape[1] and all(d == 1 for d in slope.shape[1:]):
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


@operator("PRelu", since=6)
def prelu_legacy(x: Tensor, slope: Tensor, *, consumed_inputs: Any = None) -> Tensor:
    """Before version 7 a vector of slopes belonged to the channels, not to the last axis."""
    return prelu(x, placed(slope, x, 1, 1) if slope.dim() == 1 and x.dim() > 1 and slope.numel() > 1 else slope)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0, consumed_inputs: Any = None) -> Tensor:
    return functional.elu(x, alpha)


@operator("Celu", since=12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.celu(x, alpha)


@operator("Selu")
@operator("Selu", since=6)
def selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805, consumed_inputs: Any = None) -> Tensor:
    if abs(alpha - 1.6732632423543772) < 1e-6 and abs(gamma - 1.0507009873554805) < 1e-6:
        return functional.selu(x)
    return gamma * functional.elu(x, alpha)


@operator("ThresholdedRelu", since=10)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.threshold(x, alpha, 0.0)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5, consumed_inputs: Any = None) -> Tensor:
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("HardSwish", since=14)
def hard_swish(x: Tensor) -> Tensor:
    return functional.hardswish(x)


@operator("Softplus")
def softplus(x: Tensor) -> Tensor:
    """torch takes it for the identity above 20, which is right to the last bit of a float32 and no finer type."""
    return functional.softplus(x, threshold=40.0 if x.dtype is torch.float64 else 20.0)


@operator("Softsign")
def softsign(x: Tensor) -> Tensor:
    return functional.softsign(x)


@operator("Mish", since=18)
def mish(x: Tensor) -> Tensor:
    return functional.mish(x)


@operator("Gelu", since=20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


@operator("Swish", since=24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


@operator("Shrink", since=9)
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    y = torch.where(x > lambd, x - bias, torch.where(x < -lambd, x + bias, torch.zeros_like(x)))
    return y.to(x.dtype)


@operator("Dropout", several=True)
def dropout_attributes(x: Tensor, *, ratio: float = 0.5, is_test: int = 0, consumed_inputs: Any = None, outputs: int) -> tuple[Tensor, ...]:
    return x, torch.ones_like(x)


@operator("Dropout", since=10, several=True)
def dropout_10(x: Tensor, *, ratio: float = 0.5, outputs: int) -> tuple[Tensor, ...]:
    return x, torch.ones_like(x, dtype=torch.bool)


@operator("Dropout", since=12, hosts=True, several=True)
def dropout(
    x: Any, ratio: Tensor | Host | None = None, training: Tensor | Host | None = None, *, seed: int | None = None, outputs: int
) -> tuple[Tensor, ...]:
    if training is not None and number(training) and (ratio is None or number(ratio) != 0):
        raise NotImportable("Dropout is in training mode")
    x = as_tensor(x)
    return x, torch.ones_like(x, dtype=torch.bool) if outputs > 1 else x
