"""The interval of a median: known values, and how often it holds the true one."""

import math

import numpy as np
import pytest

from graphopt.measurement import interval


@pytest.mark.parametrize(
    ("n", "k", "confidence"),
    # Ranks as tabulated for the sign test's interval at 95 %; below six values the range is all there is.
    [
        (1, 1, 0.0),
        (2, 1, 0.5),
        (3, 1, 0.75),
        (5, 1, 0.9375),
        (6, 1, 0.95),
        (8, 1, 0.95),
        (9, 2, 0.95),
        (12, 3, 0.95),
        (20, 6, 0.95),
        (40, 14, 0.95),
    ],
)
def test_ranks(n, k, confidence):
    values = list(np.random.default_rng(n).permutation(np.arange(1, n + 1)))
    assert interval.order_statistics(values) == (k, n - k + 1, confidence)


def test_no_values():
    with pytest.raises(ValueError, match="no values"):
        interval.order_statistics([])


def test_median_and_hull():
    middle, low, high, confidence = interval.of_median([[1.0] * 8, [1.1] * 8, [1.2] * 8])
    assert middle == 1.1 and confidence == 0.95
    # Student's t with two degrees of freedom over 1.0, 1.1, 1.2.
    assert high - 1.1 == pytest.approx(4.30 * 0.1 / math.sqrt(3))
    assert 1.1 - low == pytest.approx(high - 1.1)


def test_coverage_where_rounds_have_luck_of_their_own():
    """With rounds that differ among themselves the interval over all pairs alone misses the truth far too often."""
    rng = np.random.default_rng(0)
    held = naive = 0
    for _ in range(400):
        rounds = [list(1 + luck + rng.normal(0, 0.005, 8)) for luck in rng.normal(0, 0.01, 5)]
        _, low, high, _ = interval.of_median(rounds)
        held += low <= 1 <= high
        low, high, _ = interval.order_statistics([v for r in rounds for v in r])
        naive += low <= 1 <= high
    assert held / 400 >= 0.93
    assert naive / 400 < 0.85
