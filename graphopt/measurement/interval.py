"""A confidence interval of the median of paired ratios, taken in rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median, stdev

LEVEL = 0.95

# Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond the table the last value, a little wide.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09)


def order_statistics(values: Sequence[float]) -> tuple[float, float, float]:
    """(low, high, confidence) of the median, without any assumption on the distribution of independent `values`.

    The interval runs from the k-th smallest to the k-th largest value, k as large as a coverage of 95 % allows:
    the median lies outside with probability 2 P(Binomial(n, 1/2) < k). Fewer than six values reach no 95 %: then the
    interval is their whole range and `confidence` what that range covers, 1 - 2^(1-n); 0 for one value.
    Source: H. A. David, H. N. Nagaraja, Order Statistics, 3rd edition, section 7.1.
    """
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        raise ValueError("no values")
    k, tail = 1, 0.5**n  # tail: P(Binomial(n, 1/2) < k)
    while k < n / 2 and 2 * (wider := tail + math.comb(n, k) * 0.5**n) <= 1 - LEVEL:
        k, tail = k + 1, wider
    return ordered[k - 1], ordered[n - k], min(LEVEL, 1 - 2 * tail)


def of_median(rounds: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """(median, low, high, confidence) of values taken in rounds.

    Values of one round share whatever luck the round had (where its sessions lie in memory, what else ran meanwhile),
    so they are not independent, and an interval over all of them alone would be too narrow. The result is the hull of
    two intervals: order statistics over all values, and, from three rounds on, Student's t over the medians of the
    rounds. Both are deterministic.
    """
    values = [v for r in rounds for v in r]
    low, high, confidence = order_statistics(values)
    medians = [median(r) for r in rounds if r]
    if (n := len(medians)) >= 3:
        half = _T[min(n - 1, len(_T)) - 1] * stdev(medians) / math.sqrt(n)
        low, high = min(low, mean(medians) - half), max(high, mean(medians) + half)
    return median(values), max(low, 0.0), high, confidence
