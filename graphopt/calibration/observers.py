"""What is kept of a tensor while samples go by: its size does not depend on how many there are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.calibration import ranges
from graphopt.calibration.histograms import Histogram
from graphopt.errors import CalibrationError

#: How a range is chosen from statistics.
METHODS = ("min-max", "moving-average", "percentile", "entropy", "mse")
#: Those that need no histogram.
PLAIN = frozenset({"min-max", "moving-average"})

_ROWS = 1 << 12  # rows of a tensor that are in single precision at a time, for the second moment


@dataclass
class Statistics:
    """What a tensor took over the calibration samples.

    Attributes:
        name: of the tensor.
        samples: in how many samples it had elements.
        elements: of all of them together.
        low, high: the least and the greatest finite value; inf and -inf where there was none.
        mean_low, mean_high: of each sample's least and greatest value, the mean.
        faults: what no range can express, "NaN" or "infinity", with the sample that it was first seen in.
        histogram: of the finite values, or None.
        axis, channel_low, channel_high: the extremes by channel along an axis, float64, or None.
        channel_mean, channel_square: the means of x and of x^2 over all values of a channel, float64, or None.
        moment: E[x x^T] over vectors along the last axis, [features, features] float64, or None.
    """

    name: str
    samples: int = 0
    elements: int = 0
    low: float = math.inf
    high: float = -math.inf
    mean_low: float = 0.0
    mean_high: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)
    histogram: Histogram | None = None
    axis: int | None = None
    channel_low: np.ndarray | None = None
    channel_high: np.ndarray | None = None
    channel_mean: np.ndarray | None = None
    channel_square: np.ndarray | None = None
    moment: np.ndarray | None = None
    _ranges: dict[tuple[Any, ...], tuple[float, float]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def constant(self) -> bool:
        """Whether the tensor was the same number everywhere, on every sample."""
        return self.elements > 0 and self.low == self.high

    @property
    def fault(self) -> str | None:
        """Why no range should be taken from these statistics, in one clause; None where nothing is wrong."""
        if self.faults:
            return "; ".join(f"it has {what} in {origin}" for what, origin in self.faults.items())
        if not self.elements:
            return "it has no elements in any calibration sample"
        if self.constant:
            return f"it is {self.low + 0.0:g} everywhere in all calibration samples"
        return None

    def range(self, method: str = "min-max", *, symmetric: bool = False, bits: int = 8, percent: float = 99.999) -> tuple[float, float]:
        """The range that an integer type of `bits` bits should stand for: low <= 0 <= high, and low = -high if `symmetric`.

        method: one of `METHODS`. percent: for percentile, how many of the values lie in the range.

        Raises ValueError where the method is unknown or needs a histogram that was not taken, or where there is no value.
        """
        if method not in METHODS:
            raise ValueError(f"method {method!r} is none of {', '.join(METHODS)}")
        asked = method, symmetric, bits, percent, self.elements
        if asked not in self._ranges:  # a search replays a pass many times over the same statistics
            self._ranges[asked] = self._range(method, symmetric, bits, percent)
        return self._ranges[asked]

    def _range(self, method: str, symmetric: bool, bits: int, percent: float) -> tuple[float, float]:
        if not math.isfinite(self.low):
            raise ValueError(f"{self.name}: no finite values were seen")
        low, high = self.low, self.high
        if method == "moving-average":
            low, high = self.mean_low, self.mean_high
        elif method not in PLAIN:
            if self.histogram is None:
                raise ValueError(f"{self.name}: {method} needs a histogram")
            if method == "percentile":
                low, high = ranges.percentile(self.histogram, low, high, percent, symmetric)
            elif method == "entropy":
                low, high = ranges.entropy(self.histogram, low, high, 2**bits - symmetric, symmetric)
            else:
                low, high = ranges.least_error(self.histogram, low, high, bits, symmetric)
        low, high = min(low, 0.0), max(high, 0.0)
        return (-max(-low, high), max(-low, high)) if symmetric else (low, high)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the histogram."""
        return {
            "name": self.name, "samples": self.samples, "elements": self.elements, "low": self.low, "high": self.high,
            "fault": self.fault,
        }  # fmt: skip


class Observer:
    """Turns the arrays of one tensor, sample by sample, into its statistics."""

    def __init__(self, name: str, *, histogram: bool = True, axis: int | None = None, moment: bool = False) -> None:
        self.statistics = Statistics(name, histogram=Histogram() if histogram else None, axis=axis)
        self._moment = moment
        self._rows = self._places = 0

    def add(self, array: np.ndarray, origin: str) -> None:
        """Take one sample's array; origin: how that sample is called.

        Raises CalibrationError where the channels, or the features of a second moment, are not those of earlier samples.
        """
        found = self.statistics
        if not array.size:
            return
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        low, high = float(array.min()), float(array.max())
        finite = array
        if not (math.isfinite(low) and math.isfinite(high)):
            if np.isnan(array).any():
                found.faults.setdefault("NaN", origin)
            if np.isinf(array).any():
                found.faults.setdefault("infinity", origin)
            finite = array[np.isfinite(array)]
            if not finite.size:
                return
            low, high = float(finite.min()), float(finite.max())
        found.samples += 1
        found.elements += finite.size
        found.low, found.high = min(found.low, low), max(found.high, high)
        found.mean_low += (low - found.mean_low) / found.samples
        found.mean_high += (high - found.mean_high) / found.samples
        if found.histogram is not None:
            found.histogram.add(finite, low, high)
        if finite is not array:
            return  # what follows would spread the fault over all channels; the tensor is of no use as it is
        if found.axis is not None:
            self._channels(array, found.axis)
        if self._moment:
            self._products(array)

    def _channels(self, array: np.ndarray, axis: int) -> None:
        found = self.statistics
        if not -array.ndim <= axis < array.ndim:
            raise CalibrationError(f"tensor {found.name!r} has no axis {axis}: it has {array.ndim} dimensions")
        others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
        low, high = array.min(axis=others).astype(np.float64), array.max(axis=others).astype(np.float64)
        places = array.size // max(1, low.size)
        mean, square = array.mean(axis=others, dtype=np.float64), np.square(array).mean(axis=others, dtype=np.float64)
        if found.channel_low is None or found.channel_high is None:
            found.channel_low, found.channel_high, found.channel_mean, found.channel_square = low, high, mean, square
            self._places = places
            return
        if low.shape != found.channel_low.shape:
            raise CalibrationError(f"tensor {found.name!r} has {low.size} channels in one sample and {found.channel_low.size} in another")
        np.minimum(found.channel_low, low, out=found.channel_low)
        np.maximum(found.channel_high, high, out=found.channel_high)
        self._places += places
        found.channel_mean += (mean - found.channel_mean) * (places / self._places)
        found.channel_square += (square - found.channel_square) * (places / self._places)

    def _products(self, array: np.ndarray) -> None:
        found = self.statistics
        if not array.ndim:
            raise CalibrationError(f"tensor {found.name!r} has no axis whose second moment could be taken")
        rows = array.reshape(-1, array.shape[-1])
        if found.moment is None:
            found.moment = np.zeros((rows.shape[1], rows.shape[1]))
        elif found.moment.shape[0] != rows.shape[1]:
            raise CalibrationError(f"tensor {found.name!r} has {rows.shape[1]} features in one sample, {found.moment.shape[0]} in another")
        # A running mean: a sum would lose its last digits to its own size.
        found.moment *= self._rows / (self._rows + len(rows))
        self._rows += len(rows)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS].astype(np.float32, copy=False)
            found.moment += (part.T @ part) / self._rows
