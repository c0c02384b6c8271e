"""GPTQ: each column is rounded, and the columns behind it make up for the error that this makes in the outputs.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022. What a layer
reads is known by its second moment E[x x^T], the Hessian of the squared error of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphopt.rewriting import Refuse

_WIDTH = 128  # columns after which the rest of the matrix is brought up to date
_DAMPING = (0.01, 0.1, 1.0)  # of the mean of the diagonal; the first with which the Hessian is positive definite
_LEAF = 64  # a triangle of that size is inverted as a whole

#: From the weights of a group, [N, group], to its scale and zero point, [N] each.
Grid = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def gptq(
    weight: np.ndarray, hessian: np.ndarray, grid: Grid, *, low: int, high: int, group: int | None = None, order: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The integers of a matrix [N, K], int16, and its scales and zero points, [N, G] each: w = (q - zero) * scale.

    Args:
        weight: the matrix; read, not changed.
        hessian: E[x x^T] of the inputs, [K, K], or any multiple.
        grid: the grid of a group of columns. It is asked when the first of them is reached, with the weights as they are
            then; with `order`, in advance.
        low, high: the range of the integers.
        group: columns that share a grid; None: all.
        order: columns with large inputs first ("act-order"); groups stay where they are.

    Refuses where the Hessian is not positive definite even when damped.
    """
    columns = weight.shape[1]
    group = group or columns
    # By column: a step reads one and changes those behind it.
    left = np.array(weight.T, np.float32, order="C")
    alive = _alive(hessian)
    places = np.argsort(-np.diag(alive), kind="stable") if order else np.arange(columns)
    factor = _inverse_factor(alive[np.ix_(places, places)] if order else alive).astype(np.float32)
    grids: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    if order:
        grids = {g: grid(weight[:, g * group : (g + 1) * group]) for g in range(-(-columns // group))}
        left = left[places]
    integers = np.empty((columns, len(weight)), np.int16)
    for start in range(0, columns, _WIDTH):
        end = min(start + _WIDTH, columns)
        errors = np.empty((end - start, len(weight)), np.float32)
        for k in range(start, end):
            number = int(places[k]) // group
            if number not in grids:
                grids[number] = grid(_current(left, factor, errors, start, k, min(k + group, columns)).T)
            scale, zero = grids[number]
            rounded = np.clip(np.rint(left[k] / scale) + zero, low, high)
            integers[places[k]] = rounded
            error = (left[k] - (rounded - zero) * scale) / factor[k, k]
            errors[k - start] = error
            left[k + 1 : end] -= np.outer(factor[k, k + 1 : end], error)
        left[end:] -= factor[start:end, end:].T @ errors
    scales, zeros = (np.stack([grids[g][i] for g in sorted(grids)], axis=1) for i in (0, 1))
    return integers.T, scales, zeros


def output_error(weight: np.ndarray, rounded: np.ndarray, hessian: np.ndarray) -> float:
    """The mean squared error of the outputs, summed over them, if [N, K] is replaced by what it was rounded to."""
    error = weight.astype(np.float32) - rounded
    return float(np.einsum("nk,nk->", error @ hessian.astype(np.float32), error, dtype=np.float64))


def _current(left: np.ndarray, factor: np.ndarray, errors: np.ndarray, start: int, k: int, end: int) -> np.ndarray:
    """Columns k to end as they are now: those outside the block at hand do not know of its errors yet."""
    behind = min(start + len(errors), end)
    if behind == end:
        return left[k:end]
    late = left[behind:end] - factor[start:k, behind:end].T @ errors[: k - start]
    return np.concatenate([left[k:behind], late])


def _alive(hessian: np.ndarray) -> np.ndarray:
    """The Hessian with something on the diagonal for inputs that were always zero: their weights are rounded by themselves."""
    diagonal = np.diag(hessian)
    dead = diagonal <= 0
    if not dead.any():
        return hessian
    hessian = hessian.copy()
    hessian[dead, dead] = diagonal[~dead].mean() if not dead.all() else 1.0
    return hessian


def _inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """The upper triangular U with U^T U the inverse of the damped Hessian.

    By Cholesky in reverse order: H = R R^T with R upper triangular, and U is its inverse; no inverse of H is formed.
    """
    diagonal = np.arange(len(hessian))
    for share in _DAMPING:
        damped = hessian.astype(np.float64)
        damped[diagonal, diagonal] += share * damped[diagonal, diagonal].mean()
        try:
            reverse = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(reverse).all():
            return _inverse_of_triangle(np.ascontiguousarray(reverse[::-1, ::-1]))
    raise Refuse("the second moment of its inputs is not positive definite")


def _inverse_of_triangle(upper: np.ndarray) -> np.ndarray:
    """The inverse of an upper triangular matrix, by halves."""
    size = len(upper)
    if size <= _LEAF:
        return np.triu(np.linalg.inv(upper))
    half = size // 2
    found = np.zeros_like(upper)
    found[:half, :half] = _inverse_of_triangle(upper[:half, :half])
    found[half:, half:] = _inverse_of_triangle(upper[half:, half:])
    found[:half, half:] = -found[:half, :half] @ upper[:half, half:] @ found[half:, half:]
    return found
