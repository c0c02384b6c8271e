"""How far two values of one output are apart, and how far they may be.

A float output is compared against ``max(rtol * max(|b|, floor * scale), K * noise)``:

- *scale* is the largest finite magnitude of the reference's output, per channel where a channel has enough elements
  (a detector's boxes in pixels and its scores in [0, 1] often share one tensor, and the boxes must not excuse the
  scores), but at least a thousandth of the whole output's, and at least the width of the range where the output ends
  in an operator with a fixed one: a sigmoid that answers 1e-7 everywhere is zero as far as anyone can tell.
- *noise* is what the reference's own rounding does to that output (see `reference`), in absolute terms and per channel.
  What it may add is capped at a fixed part of the whole scale, so that no noise excuses a wrong graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

#: Elements whose magnitude is below this part of the scale are compared as if they were that large.
FLOOR = 0.1
#: A candidate may be this many times as far from the reference as the reference is from itself.
NOISE_FACTOR = 10.0
#: No noise raises the tolerance above this part of the scale (floats of few bits: see `cap_of`).
CAP = 1e-2
#: ... unless the reference's rounding alone moves it further: then twice that, up to this part. Models that quantize
#: as they run are such: one rounding moves a value to the next of 255 steps.
HARD_CAP = 5e-2
_CHANNEL_ELEMENTS = 16


@dataclass(frozen=True)
class Leaf:
    """How one array of an output compares. The figures are over all its elements.

    max_abs: largest |a - b|; max_rel: largest |a - b| / max(|b|, FLOOR * scale); worst: largest |a - b| / tolerance;
    distance: ||a - b|| / ||b||; flips: part of the elements that differ (integers, bools, strings); fault: why they
    can not be compared at all (shape, dtype, NaN), "" where they can.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    worst: float = 0.0
    distance: float = 0.0
    cosine: float = 1.0
    flips: float = 0.0
    fault: str = ""


def leaves(value: Any, path: str = "") -> list[tuple[str, np.ndarray]]:
    """The arrays in an output, with where they are in it: arrays as they are, lists and maps taken apart.

    The keys of a map are an array of their own, so that a missing or reordered class shows. None (an empty optional)
    is an empty object array.
    """
    if isinstance(value, np.ndarray):
        return [(path, value)]
    if value is None:
        return [(f"{path}:none", np.empty(0, dtype=object))]
    if isinstance(value, Mapping):
        keys = list(value)
        found = [(f"{path}:keys", np.array(keys, dtype=object if any(isinstance(k, str) for k in keys) else None))]
        items = list(value.values())
        if all(np.isscalar(i) for i in items):
            return [*found, (f"{path}:values", np.array(items))]
        return found + [leaf for k, i in zip(keys, items, strict=True) for leaf in leaves(i, f"{path}[{k}]")]
    if isinstance(value, (list, tuple)):
        if value and all(_row(v) and list(v) == list(value[0]) for v in value):
            # A classifier's list of {class: probability}: one row a sample.
            return [*leaves(value[0], path)[:1], (f"{path}:values", np.array([list(v.values()) for v in value]))]
        found = [(f"{path}:length", np.array(len(value)))]
        return found + [leaf for i, v in enumerate(value) for leaf in leaves(v, f"{path}[{i}]")]
    return [(path, np.asarray(value))]


def _row(value: Any) -> bool:
    """Whether a value is a map to plain numbers."""
    return isinstance(value, Mapping) and all(map(np.isscalar, value.values()))


def is_float(array: np.ndarray) -> bool:
    """Floats of any width, bfloat16 and the 8-bit ones among them, and complex numbers."""
    return array.dtype.kind in "fc" or (array.dtype.kind == "V" and array.dtype.name.startswith(("bfloat", "float")))


def wide(array: np.ndarray) -> np.ndarray:
    """The array as float64 (complex128 for complex numbers)."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def eps_of(dtype: np.dtype) -> float:
    """The distance from 1 to the next number of a float dtype; 0 for other dtypes."""
    try:
        return float(ml_dtypes.finfo(dtype).eps)
    except ValueError:
        return 0.0


def cap_of(eps: float, rounding: float = 0.0) -> float:
    """The part of the scale above which no noise raises a tolerance: CAP, 8 eps for floats of few bits, or twice the
    reference's rounding noise (over the scale) up to HARD_CAP."""
    return max(CAP, 8 * eps, min(2 * rounding, HARD_CAP))


def identical(a: np.ndarray, b: np.ndarray) -> bool:
    """Same dtype, shape and bits (strings: equal). A NaN equals a NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype == object:
        return bool(np.all(a == b))
    if a.tobytes() == b.tobytes():
        return True
    if not is_float(a):
        return False
    x, y = wide(a), wide(b)
    return bool(np.all((np.isnan(x) & np.isnan(y)) | ((x == y) & (np.signbit(x.real) == np.signbit(y.real)))))


def scale_of(array: np.ndarray) -> float:
    """The largest finite magnitude; 0 for an empty array or one without a finite element."""
    if not is_float(array) or not array.size:
        return 0.0
    magnitude = np.abs(wide(array))
    finite = magnitude[np.isfinite(magnitude)]
    return float(finite.max()) if finite.size else 0.0


def per_channel(magnitude: np.ndarray) -> np.ndarray:
    """The largest element of each channel, in a shape that broadcasts; of the whole array where channels are too small.

    The channel axis is the smallest one but the first: classes, boxes' coordinates, colours, features.
    """
    clean = np.where(np.isfinite(magnitude), magnitude, 0.0)
    axes = [i for i in range(1, clean.ndim) if clean.shape[i] > 1]
    if axes:
        axis = min(axes, key=lambda i: clean.shape[i])
        if clean.size // clean.shape[axis] >= _CHANNEL_ELEMENTS:
            return clean.max(axis=tuple(i for i in range(clean.ndim) if i != axis), keepdims=True)
    return np.asarray(clean.max()) if clean.size else np.asarray(0.0)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """|a - b| as float64, 0 where both are the same infinity or both NaN; None where NaN or Inf differ, or shapes do."""
    if a.shape != b.shape:
        return None
    x, y = wide(a), wide(b)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if np.any(~same & ~(np.isfinite(x) & np.isfinite(y))):
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(same, 0.0, np.abs(x - y))


def compare(
    a: np.ndarray,
    b: np.ndarray,
    *,
    rtol: float,
    noise: np.ndarray | float = 0.0,
    span: float = 0.0,
    usual: float = 0.0,
    eps: float = 0.0,
    rounding: float = 0.0,
) -> Leaf:
    """Candidate a against reference b.

    rtol: relative tolerance; noise: the reference's own, absolute, broadcastable to b; span: width of the range that
    the output is bound to, 0 where there is none; usual: the scale of this output over all samples (an output that is
    zero on one sample is compared at a hundredth of what it usually is); eps: of the coarsest floats in the model;
    rounding: the part of the noise that is the model's own, over the scale (see `cap_of`).
    """
    if a.dtype != b.dtype:
        return Leaf(fault=f"dtype is {a.dtype}, not {b.dtype}", worst=math.inf)
    if a.shape != b.shape:
        return Leaf(fault=f"shape is {list(a.shape)}, not {list(b.shape)}", worst=math.inf)
    if not is_float(b):
        differing = int(np.count_nonzero(a != b))
        largest = 0.0
        if differing and b.dtype.kind in "iub":
            largest = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))))
        return Leaf(largest, flips=differing / max(b.size, 1), worst=math.inf if differing else 0.0)
    if not b.size:
        return Leaf()
    delta = difference(a, b)
    if delta is None:
        return Leaf(fault=_where_not_finite(wide(a), wide(b)), worst=math.inf)
    magnitude = np.where(np.isfinite(wide(b)), np.abs(wide(b)), 0.0)
    whole = max(float(magnitude.max()), span, 1e-2 * usual)
    scale = np.maximum(np.maximum(per_channel(magnitude), 1e-3 * whole), max(span, 1e-2 * usual))
    # Where the reference is zero on all samples nothing gives a scale; such samples prove little and are called so.
    base = np.maximum(np.maximum(magnitude, FLOOR * scale), 0.0 if whole else 1e-7 / rtol if rtol else 0.0)
    tolerance = np.maximum(rtol * base, np.minimum(NOISE_FACTOR * np.asarray(noise), cap_of(eps, rounding) * whole))
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = float(np.max(np.where(delta == 0, 0.0, delta / tolerance)))
        relative = float(np.max(np.where(delta == 0, 0.0, delta / np.where(base == 0, 1.0, base))))
    norm = float(np.linalg.norm(magnitude))
    gap = float(np.linalg.norm(delta))
    return Leaf(float(delta.max()), relative, worst, gap / norm if norm else (0.0 if not gap else math.inf), _cosine(a, b))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = wide(a).ravel(), wide(b).ravel()
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    # Scaled first: the squares of large or tiny values would overflow or vanish.
    x, y = (v / s if (s := float(np.abs(v).max(initial=0.0))) else v for v in (x, y))
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    if not norms:
        return 1.0 if not np.any(x) and not np.any(y) else 0.0
    return float(min(1.0, np.abs(np.vdot(x, y)) / norms)) if np.iscomplexobj(x) else float(np.clip(np.dot(x, y) / norms, -1, 1))


def _where_not_finite(a: np.ndarray, b: np.ndarray) -> str:
    for what, test in (("NaN", np.isnan), ("Inf", np.isinf)):
        ours, theirs = int(np.count_nonzero(test(a))), int(np.count_nonzero(test(b)))
        if ours != theirs:
            return f"{ours} {what} where the reference has {theirs}"
    return "NaN or Inf in other places than in the reference, or of the other sign"
