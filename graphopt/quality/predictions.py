"""Whether two models predict the same: the class with the highest score of each output that holds scores."""

from __future__ import annotations

import numpy as np


def class_axis(array: np.ndarray) -> int | None:
    """The axis along which an output has a score for each class: the second of a picture's, else the last; None: no scores."""
    if array.ndim < 2 or array.dtype.kind != "f":
        return None
    axis = 1 if array.ndim >= 4 else array.ndim - 1
    return axis if array.shape[axis] > 1 and array.size else None


def agreement(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """How many predictions two float arrays of one shape have in common, and how many there are; (0, 0) without classes."""
    axis = class_axis(b)
    if axis is None or a.shape != b.shape:
        return 0, 0
    same = a.argmax(axis=axis) == b.argmax(axis=axis)
    return int(np.count_nonzero(same)), int(same.size)
