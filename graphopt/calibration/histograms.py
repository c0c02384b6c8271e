"""A histogram of a stream of numbers whose range is not known before.

The bins lie on a grid through zero and are a power of two wide. Where a value falls outside, two, four, ... neighbours
become one until all fit: counts are added, never shared out, so the result depends on the values alone and not on the
order in which they came, and every bin is exactly what it would be had the range been known from the start.
"""

from __future__ import annotations

import math

import numpy as np

BINS = 8192
_SLICE = 1 << 18  # values looked at at a time, so that temporary arrays stay in the processor's cache
_NARROWEST = -100  # exponent of the narrowest bin: what is smaller is zero to every use
_RESOLUTION = 30  # bins need not be finer than the largest value divided by two to this


class Histogram:
    """Counts of values in bins [i * width, (i + 1) * width).

    Attributes:
        width: of a bin, a power of two; 0 while there is none.
        first: the number i of the first bin.
        counts: how many values fell into each bin from the first on, int64.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.first = 0
        self.counts = np.zeros(0, np.int64)
        self._exponent: int | None = None
        self._low, self._high = math.inf, -math.inf

    @property
    def width(self) -> float:
        return 0.0 if self._exponent is None else math.ldexp(1.0, self._exponent)

    @property
    def edges(self) -> np.ndarray:
        """The len(counts) + 1 borders of the bins, float64."""
        return np.ldexp(np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64), self._exponent or 0)

    @property
    def centers(self) -> np.ndarray:
        """The middle of each bin, float64."""
        return self.edges[:-1] + self.width / 2

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def add(self, values: np.ndarray, low: float, high: float) -> None:
        """Count values, all of them finite; low, high: the least and the greatest of them."""
        if not values.size:
            return
        self._grow(min(self._low, low), max(self._high, high))
        assert self._exponent is not None
        flat = values.reshape(-1)
        inverse = math.ldexp(1.0, -self._exponent)
        for start in range(0, flat.size, _SLICE):
            part = flat[start : start + _SLICE]
            if part.dtype not in (np.float32, np.float64):
                part = part.astype(np.float32)
            # Exact: a product with a power of two only moves the exponent, which _grow keeps within float32.
            place = np.floor(part * part.dtype.type(inverse)).astype(np.int64)
            place -= self.first
            self.counts += np.bincount(place, minlength=len(self.counts))

    def _grow(self, low: float, high: float) -> None:
        """Make room for the range: wider bins where there are too many of them."""
        if (low, high) == (self._low, self._high):
            return
        exponent = _exponent(low, high, self.bins)
        first, last = _bin(low, exponent), _bin(high, exponent)
        counts = np.zeros(last - first + 1, np.int64)
        if self._exponent is not None:
            old = (self.first + np.arange(len(self.counts))) >> (exponent - self._exponent)
            np.add.at(counts, old - first, self.counts)
        self._exponent, self.first, self.counts = exponent, first, counts
        self._low, self._high = low, high


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _exponent(low: float, high: float, bins: int) -> int:
    """The least exponent of two at which `bins` bins cover low to high; it never falls when the range grows."""
    largest = math.frexp(max(abs(low), abs(high)))[1]
    exponent = max(_NARROWEST, largest - _RESOLUTION, math.frexp((high - low) / bins)[1] - 2)
    while _bin(high, exponent) - _bin(low, exponent) >= bins:
        exponent += 1
    return exponent
