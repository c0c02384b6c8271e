"""Half-quadratic quantization: grids that fit a block's bulk rather than its outliers, without any data.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023.
"""

from __future__ import annotations

import numpy as np

from .blocks import nearest, to_integers, usable

_NORM = 0.7  # of what is minimized: |error| ** 0.7
_PENALTY, _GROWTH = 10.0, 1.01  # as in the paper
_STEPS = 6  # later ones gain less than 0.03 dB


def half_quadratic(wide: np.ndarray, top: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of blocks [n, block], [n, 1] each.

    Beside the error an auxiliary one is kept, shrunk as the norm demands (generalized soft thresholding). What is left
    of the weight gives the zero point, as in the paper, and by least squares the scale: zero points are stored as
    integers, so that they alone could hardly move. A block keeps the best of all steps by its squared error, the grid
    that all steps start from included; so none is worse than rounded to nearest.
    """
    scale, zero = nearest(wide, top, symmetric)
    best_scale, best_zero = scale.copy(), zero.copy()
    integers = to_integers(wide, scale, zero, top)
    error = wide - scale * (integers - zero)
    least = (error * error).sum(axis=1, keepdims=True)
    # The penalty speaks of weights of about one; blocks are brought there.
    size = usable(np.abs(wide).max(axis=1, keepdims=True))
    penalty = _PENALTY
    for _ in range(_STEPS):
        target = wide - _shrunk(error / size, penalty) * size
        if not symmetric:
            zero = np.clip(np.rint((integers - target / scale).mean(axis=1, keepdims=True)), 0, top)
        steps = integers - zero
        square = (steps * steps).sum(axis=1, keepdims=True)
        fitted = (steps * target).sum(axis=1, keepdims=True) / np.maximum(square, 1)
        scale = usable(np.where(fitted == 0, scale, fitted))
        integers = to_integers(wide, scale, zero, top)
        error = wide - scale * (integers - zero)
        squared = (error * error).sum(axis=1, keepdims=True)
        better = squared < least
        np.copyto(best_scale, scale, where=better)
        np.copyto(best_zero, zero, where=better)
        np.copyto(least, squared, where=better)
        penalty *= _GROWTH
    return best_scale, best_zero


def _shrunk(error: np.ndarray, penalty: float) -> np.ndarray:
    """What minimizes |e| ** p + penalty / 2 * (e - error) ** 2, about: small errors become zero, large ones stay."""
    size = np.abs(error)
    return np.sign(error) * np.maximum(size - np.maximum(size, 1e-8) ** (_NORM - 1) * (_NORM / penalty), 0)
