"""Half-quadratic quantization: grids that fit a block's bulk rather than its outliers, without any data.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023.
"""

from __future__ import annotations

import numpy as np

from .blocks import nearest, to_integers, usable

_NORM = 0.7  # of what is minimized: |error| ** 0.7
_PENALTY, _GROWTH = 10.0, 1.01  # as in the paper
_STARTS = (1.0, 0.85)  # parts of the whole range: from a narrower grid the steps end elsewhere
_STEPS = 3


def half_quadratic(wide: np.ndarray, top: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of blocks [n, block], [n, 1] each.

    Beside the error an auxiliary one is kept, shrunk as the norm demands (generalized soft thresholding). What is left
    of the weight gives the zero point, as in the paper, and by least squares the scale: zero points are stored as
    integers (the runtime's kernels for others are fifty times slower), so that they alone could hardly move. A block
    keeps the best of all steps by its squared error, the grid that holds all of it included; so none is worse than
    rounded to nearest.
    """
    search = _Search(wide, top, symmetric)
    scale, zero = nearest(wide, top, symmetric)
    for start in _STARTS:
        search.descend(scale * np.float32(start), zero)
    return search.scale, search.zero


class _Search:
    """The best grid of each block so far."""

    def __init__(self, wide: np.ndarray, top: int, symmetric: bool) -> None:
        self.wide, self.top, self.symmetric = wide, top, symmetric
        # The penalty speaks of weights of about one; blocks are brought there.
        self.size = usable(np.abs(wide).max(axis=1, keepdims=True))
        self.scale = self.zero = np.empty(0)
        self.least: np.ndarray | None = None

    def descend(self, scale: np.ndarray, zero: np.ndarray) -> None:
        penalty = _PENALTY
        integers, error = self._rounded(scale, zero)
        for _ in range(_STEPS):
            target = self.wide - _shrunk(error / self.size, penalty) * self.size
            if not self.symmetric:
                zero = np.clip(np.rint((integers - target / scale).mean(axis=1, keepdims=True)), 0, self.top)
            steps = integers - zero
            square = (steps * steps).sum(axis=1, keepdims=True)
            fitted = (steps * target).sum(axis=1, keepdims=True) / np.maximum(square, 1)
            scale = usable(np.where(fitted == 0, scale, fitted))
            integers, error = self._rounded(scale, zero)
            penalty *= _GROWTH

    def _rounded(self, scale: np.ndarray, zero: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The integers and the errors on a grid, which is kept where it is the best of its block."""
        integers = to_integers(self.wide, scale, zero, self.top)
        error = self.wide - scale * (integers - zero)
        squared = (error * error).sum(axis=1, keepdims=True)
        if self.least is None:
            self.scale, self.zero, self.least = scale.copy(), zero.copy(), squared
            return integers, error
        better = squared < self.least
        np.copyto(self.scale, scale, where=better)
        np.copyto(self.zero, zero, where=better)
        np.copyto(self.least, squared, where=better)
        return integers, error


def _shrunk(error: np.ndarray, penalty: float) -> np.ndarray:
    """What minimizes |e| ** p + penalty / 2 * (e - error) ** 2, about: small errors become zero, large ones stay."""
    size = np.abs(error)
    return np.sign(error) * np.maximum(size - np.maximum(size, 1e-8) ** (_NORM - 1) * (_NORM / penalty), 0)
