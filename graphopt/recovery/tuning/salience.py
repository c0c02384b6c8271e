"""What each index of each axis of a weight counts for in the outputs: to second order, from gradients, without labels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from graphopt.model import SALIENCE
from graphopt.recovery.tuning.batches import Batches
from graphopt.recovery.tuning.student import Student


def put_salience(model: ir.Model, batches: Batches, *, probes: int = 16, seed: int = 0) -> None:
    """Note in ``meta[SALIENCE]`` of each weight what leaving out each of its indices would change in the outputs.

    Beside the model itself the error of the outputs has no first-order term. Its second-order one is w' J'J w over what
    is left out, J being the derivative of the outputs by the weights (the Gauss-Newton form of the criterion of Molchanov
    et al. 2019, "Importance Estimation for Neural Network Pruning"). It is estimated with random vectors r: the mean of
    (w . J'r)^2, in which outputs count by their spread. ``meta[SALIENCE]`` is axis -> float64 [probes, length of the axis],
    w . J'r summed over all other axes, so that sums over indices of several weights are those of what goes together.

    Args:
        model: left alone but for ``meta``.
        batches: each probe takes one of them, in turn.

    Raises:
        InputError: torch is not installed, or an operator cannot be imported or differentiated.
    """
    student = Student(model, keep_zeros=False)
    every = list(batches.epoch(seed))
    student.check(every[0])
    random = torch.Generator().manual_seed(seed)
    found: dict[str, dict[int, list[np.ndarray]]] = {name: {} for name in student.weights}
    for probe in range(probes):
        outputs = [a for a in student(every[probe % len(every)]) if a.is_floating_point() and a.requires_grad]
        total = torch.zeros(())
        for a in outputs:
            spread = float(a.detach().std()) if a.numel() > 1 else 0.0
            direction = torch.randn(a.shape, generator=random) / ((spread or 1.0) * a.numel() ** 0.5)
            total = total + (a * direction).sum()
        total.backward()
        for name, weight in student.weights.items():
            product = torch.zeros(weight.shape, dtype=torch.float64)
            if weight.grad is not None:
                product += weight.detach() * weight.grad
            for axis in range(weight.dim()):
                others = [i for i in range(weight.dim()) if i != axis]
                found[name].setdefault(axis, []).append((product.sum(others) if others else product).numpy())
        student.module.zero_grad(set_to_none=True)
    for name, axes in found.items():
        model.graph.initializers[name].meta[SALIENCE] = {axis: np.stack(rows) for axis, rows in axes.items()}
