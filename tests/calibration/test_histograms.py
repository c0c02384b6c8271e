"""Histograms of streams: the bins, whatever the order and the chunks that the values come in."""

import numpy as np
import pytest

from graphopt.calibration.histograms import Histogram


def filled(*parts: np.ndarray, bins: int = 64) -> Histogram:
    made = Histogram(bins)
    for part in parts:
        made.add(part, float(part.min()), float(part.max()))
    return made


def streams() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(5)
    return {
        "normal": [rng.standard_normal(500).astype(np.float32) * 2.0**k for k in range(-3, 6)],
        "one-sided": [np.maximum(rng.standard_normal(300), 0).astype(np.float32) * k for k in (1, 7, 3, 50)],
        "offset": [(rng.random(200) + 1000).astype(np.float32), (rng.random(200) + 1003).astype(np.float32)],
        "double": [rng.standard_normal(100) * 1e200, rng.standard_normal(100) * 1e205],
        "tiny": [rng.standard_normal(100).astype(np.float32) * np.float32(1e-36)],
        "largest": [np.asarray([-3.4e38, 3.4e38, 0, 1], np.float32)],
        "integers": [np.arange(-7, 9).astype(np.float32)],
    }


@pytest.mark.parametrize("name", list(streams()))
def test_the_bins_hold_what_numpy_counts(name: str) -> None:
    parts = streams()[name]
    found = filled(*parts)
    values = np.concatenate(parts).astype(np.float64)
    assert found.total == values.size
    assert len(found.counts) <= 64
    assert np.log2(found.width) == round(np.log2(found.width))
    # numpy counts the last bin's upper border in; ours is half open.
    expected, _ = np.histogram(values, bins=np.append(found.edges, np.inf))
    np.testing.assert_array_equal(found.counts, expected[:-1])
    assert found.edges[0] <= values.min()
    assert values.max() < found.edges[-1]


@pytest.mark.parametrize("name", ["normal", "one-sided", "offset"])
def test_neither_order_nor_chunks_matter(name: str) -> None:
    parts = streams()[name]
    wanted = filled(np.concatenate(parts))
    for found in (filled(*parts), filled(*parts[::-1]), filled(*np.array_split(np.concatenate(parts), 37))):
        assert (found.width, found.first) == (wanted.width, wanted.first)
        np.testing.assert_array_equal(found.counts, wanted.counts)


def test_the_bins_are_used() -> None:
    found = filled(np.linspace(-1, 1, 10_001, dtype=np.float32))
    assert len(found.counts) > 32


def test_a_constant() -> None:
    found = filled(np.full(10, 5, np.float32), np.full(5, 5, np.float32))
    assert found.counts.tolist() == [15]
    assert found.edges[0] <= 5 < found.edges[1]


def test_zeros_and_nothing() -> None:
    found = filled(np.zeros(4, np.float32))
    found.add(np.zeros(0, np.float32), np.inf, -np.inf)
    assert found.counts.tolist() == [4]
    assert Histogram().total == 0


def test_many_values_at_once() -> None:
    values = np.random.default_rng(0).standard_normal(600_000).astype(np.float16)
    found = filled(values)
    assert found.total == 600_000
