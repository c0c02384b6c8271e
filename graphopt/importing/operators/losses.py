"""Losses of classification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.importing.table import operator


def _loss(log_prob: Tensor, target: Tensor, weight: Tensor | None, ignored: int | None, reduction: str) -> Tensor:
    """Over classes in the second axis. A target that is ignored may be no class at all."""
    target = target.to(torch.int64)
    counts = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
    places = torch.where(counts, target, torch.zeros_like(target))
    picked = -torch.gather(log_prob, 1, places.unsqueeze(1)).squeeze(1)
    scale = counts.to(picked.dtype) if weight is None else torch.where(counts, weight[places], torch.zeros((), dtype=weight.dtype))
    found = torch.where(counts, picked * scale, torch.zeros((), dtype=picked.dtype))
    if reduction == "none":
        return found
    if reduction == "sum":
        return found.sum()
    return found.sum() / scale.sum()


def _refuse(attributes: dict[str, Any]) -> str | None:
    reduction = attributes.get("reduction", "mean")
    return None if reduction in ("none", "sum", "mean") else f"its reduction '{reduction}' is not known"


@operator("NegativeLogLikelihoodLoss", since=12, refuse=_refuse)
def negative_log_likelihood(
    log_prob: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> Tensor:
    return _loss(log_prob, target, weight, ignore_index, reduction)


@operator("SoftmaxCrossEntropyLoss", since=12, several=True, refuse=_refuse)
def softmax_cross_entropy(
    scores: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    log_prob = torch.log_softmax(scores, 1)
    return _loss(log_prob, target, weight, ignore_index, reduction), log_prob
