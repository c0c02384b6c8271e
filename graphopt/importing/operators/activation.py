"""Activations: one tensor in, one of the same shape and dtype out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.table import operator


@operator("Relu")
def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)
