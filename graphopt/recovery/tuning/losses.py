"""How far what a model gives is from what its teacher gives, as one number that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.recovery.tuning.settings import Tuning

Loss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def loss_of(settings: Tuning, variances: Sequence[float], outputs: int) -> Loss:
    """The loss over what both models give: `outputs` outputs first, then inner values.

    variances: of each value, of the teacher over the training samples. What is no float counts for nothing.
    """
    inner = max(1, len(variances) - outputs)

    def loss(ours: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(())
        for number, (a, b) in enumerate(zip(ours, teacher, strict=True)):
            if not b.is_floating_point():
                continue
            if number >= outputs:
                total = total + settings.inner_weight / inner * mse(a, b, variances[number])
            elif settings.loss == "kl":
                total = total + kl(a, b, settings.temperature)
            elif settings.loss == "cosine":
                total = total + cosine(a, b)
            else:
                total = total + mse(a, b, variances[number])
        return total

    return loss


def mse(ours: Tensor, teacher: Tensor, variance: float) -> Tensor:
    """Mean squared difference over the variance."""
    return functional.mse_loss(ours, teacher) / variance


def kl(ours: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softmax, times the squared temperature (Hinton et al. 2015, section 2)."""
    a = functional.log_softmax(ours / temperature, -1).flatten(0, -2)
    b = functional.log_softmax(teacher / temperature, -1).flatten(0, -2)
    return functional.kl_div(a, b, reduction="batchmean", log_target=True) * temperature**2


def cosine(ours: Tensor, teacher: Tensor) -> Tensor:
    """One less the cosine along the last axis, on average."""
    return (1 - functional.cosine_similarity(ours, teacher, -1)).mean()
