"""The product of two linear operators, one behind the other: the arithmetic, on arrays, in double precision."""

from __future__ import annotations

import numpy as np

from graphopt.rewriting import Refuse

MAX_WORK = 100
WORK_HELP = "most work, in 10^9 multiply-adds, that is spent on one product of two weights"
_CHUNK = 1 << 20  # elements that are in double precision at a time


def guard_work(multiply_adds: int, limit: int) -> None:
    """Refuse a product of weights that would take longer than whoever waits for the optimizer would like."""
    if multiply_adds > limit * 10**9:
        raise Refuse(f"computing the product of the weights takes {multiply_adds:.1e} multiply-adds")


def matrix_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`left` @ `right` in double precision, a few rows of `left` at a time."""
    result = np.empty((left.shape[0], right.shape[1]))
    wide = right.astype(np.float64)
    step = max(1, _CHUNK // max(1, left.shape[1]))
    for start in range(0, left.shape[0], step):
        result[start : start + step] = left[start : start + step].astype(np.float64) @ wide
    return result


def conv_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The weight of the Conv that stands for Conv `first` and then Conv `second`, of which one is 1x1; groups of 1.

    Weights are [Cout, Cin, ...]. The result has the taps of the other one.
    """
    middle = first.shape[0]
    if all(t == 1 for t in first.shape[2:]):
        taps = np.moveaxis(second, 1, -1)  # [Cout, taps, middle]
        product = matrix_product(taps.reshape(-1, middle), first.reshape(middle, -1))
        return np.moveaxis(product.reshape(*taps.shape[:-1], first.shape[1]), -1, 1)
    product = matrix_product(second.reshape(second.shape[0], middle), first.reshape(middle, -1))
    return product.reshape(second.shape[0], *first.shape[1:])
