"""Normalizations, softmax among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.operators.shape import placed
from graphopt.importing.table import operator
from graphopt.importing.values import NotImportable


@operator("BatchNormalization", several=True)
@operator("BatchNormalization", since=7, several=True)
@operator("BatchNormalization", since=14, several=True)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
    is_test: int = 0,
    consumed_inputs: Any = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """With ``training_mode`` the statistics are the batch's, and the running ones move towards them."""
    if not spatial:
        raise NotImportable("a BatchNormalization of each element by itself (spatial = 0) is not supported")
    if training_mode:
        over = [i for i in range(x.dim()) if i != 1]
        batch_mean, batch_var = x.mean(over), x.var(over, unbiased=False)
        y = _affine(x, scale, bias, batch_mean, batch_var, epsilon)
        moved = (mean * momentum + batch_mean * (1 - momentum), var * momentum + batch_var * (1 - momentum))
        return (y, *moved)
    if outputs > 1:
        raise NotImportable("a BatchNormalization that puts out statistics is in training mode")
    kinds = {t.dtype for t in (x, scale, bias, mean, var)}
    if len(kinds) > 1 or x.dim() < 2 or mean.requires_grad or var.requires_grad:
        return (_affine(x, scale, bias, mean, var, epsilon),)
    return (functional.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon),)


def _affine(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float) -> Tensor:
    shape = [1, -1] + [1] * (x.dim() - 2) if x.dim() > 1 else [-1]
    scale, bias, mean, var = (t.reshape(shape) for t in (scale, bias, mean, var))
    return ((x - mean) / torch.sqrt(var + epsilon) * scale + bias).to(x.dtype)


@operator("InstanceNormalization")
@operator("InstanceNormalization", since=6)
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, consumed_inputs: Any = None) -> Tensor:
    return torch.instance_norm(x, scale, bias, None, None, True, 0.0, epsilon, False)


@operator("LayerNormalization", since=17, several=True)
def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, outputs: int
) -> tuple[Tensor, ...]:
    shape = list(x.shape[placed(axis, x.dim()) :])
    fits = scale.dim() == len(shape) and (bias is None or bias.dim() == len(shape))
    weights = (scale, bias) if fits and not any(isinstance(d, int) and d == 1 for d in scale.shape) else (None, None)
    if outputs > 1:
        y, mean, inverse = torch.native_layer_norm(x, shape, *weights, epsilon)
    else:
        y = functional.layer_norm(x, shape, *weights, eps=epsilon)
    if weights[0] is None:  # a scale that broadcasts
        y = y * scale if bias is None else y * scale + bias
    return (y, mean, inverse) if outputs > 1 else (y,)


@operator("GroupNormalization", since=18)
def group_normalization_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """In version 18 there is one scale and one bias for each group."""
    each = x.shape[1] // num_groups
    return functional.group_norm(x, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


@operator("GroupNormalization", since=21)
def group_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LRN")
def local_response(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """Of an even number of channels, more come after than before, which torch has the other way round."""
    before = (size - 1) // 2
    square = functional.pad(x * x, [0, 0] * (x.dim() - 2) + [before, size - 1 - before])
    return x / (bias + alpha / size * square.unfold(1, size, 1).sum(-1)) ** beta


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """What has no length stays what it is."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, 1, norm)


@operator("MeanVarianceNormalization", since=9)
def mean_variance_normalization(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    over = axes if axes is not None else [0, 2, 3]
    mean = x.mean(over, keepdim=True)
    deviation = torch.sqrt((x * x).mean(over, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)


def _flattened(function: Any, x: Tensor, axis: int) -> Tensor:
    """Before version 13: over all axes from ``axis`` on, as if they were one."""
    at = placed(axis, x.dim())
    if at == x.dim() - 1:
        return function(x, -1)
    return function(x.flatten(at), -1).reshape(x.shape)


@operator("Softmax")
def softmax_flattened(x: Tensor, *, axis: int = 1) -> Tensor:
    return _flattened(torch.softmax, x, axis)


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@operator("LogSoftmax")
def log_softmax_flattened(x: Tensor, *, axis: int = 1) -> Tensor:
    return _flattened(torch.log_softmax, x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


@operator("Hardmax")
def hardmax_flattened(x: Tensor, *, axis: int = 1) -> Tensor:
    return _flattened(_hardmax, x, axis)


@operator("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return _hardmax(x, axis)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first of the largest."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)
