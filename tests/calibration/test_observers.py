"""Statistics of one tensor over samples: faults, channels, second moments."""

import numpy as np
import pytest

from graphopt.calibration.observers import Observer, Statistics
from graphopt.errors import CalibrationError


def seen(*arrays, **options) -> Statistics:
    observer = Observer("x", **options)
    for number, array in enumerate(arrays):
        observer.add(np.asarray(array, np.float32), f"sample {number}")
    return observer.statistics


def test_samples_of_any_shape() -> None:
    found = seen([[1, 2], [3, 4]], [-5], 7, np.zeros((0, 3)))
    assert (found.low, found.high, found.samples, found.elements) == (-5, 7, 3, 6)
    assert found.fault is None


def test_faults_name_what_and_where() -> None:
    found = seen([1, 2], [np.nan, 3], [np.nan, -np.inf, 9])
    assert found.fault == "it has NaN in sample 1; it has infinity in sample 2"
    assert (found.low, found.high, found.elements) == (1, 9, 4)
    assert found.histogram is not None
    assert found.histogram.total == 4


def test_constants_and_nothing() -> None:
    assert seen([2, 2], [2]).fault == "it is 2 everywhere in all calibration samples"
    assert seen(np.zeros(0)).fault == "it has no elements in any calibration sample"
    assert seen([np.inf]).fault == "it has infinity in sample 0"


def test_half_precision() -> None:
    observer = Observer("x")
    observer.add(np.asarray([1.5, -2.25], np.float16), "a")
    assert (observer.statistics.low, observer.statistics.high) == (-2.25, 1.5)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_extremes_by_channel(axis: int) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((3, 4, 5)).astype(np.float32) for _ in range(6)]
    found = seen(*arrays, axis=axis)
    together = np.moveaxis(np.stack(arrays), (axis if axis >= 0 else axis + 3) + 1, 0).reshape(arrays[0].shape[axis], -1)
    np.testing.assert_array_equal(found.channel_low, together.min(axis=1))
    np.testing.assert_array_equal(found.channel_high, together.max(axis=1))


def test_channels_that_come_and_go() -> None:
    with pytest.raises(CalibrationError, match="'x' has 3 channels in one sample and 2 in another"):
        seen(np.ones((2, 1)), np.ones((3, 1)), axis=0)
    with pytest.raises(CalibrationError, match="no axis 2"):
        seen(np.ones((2, 1)), axis=2)


def test_second_moments() -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((n, 3, 8)).astype(np.float32) + 2 for n in (1, 5000, 2)]
    rows = np.concatenate([a.reshape(-1, 8) for a in arrays]).astype(np.float64)
    np.testing.assert_allclose(seen(*arrays, moment=True).moment, rows.T @ rows / len(rows), rtol=1e-5)
    with pytest.raises(CalibrationError, match="7 features in one sample, 8 in another"):
        seen(arrays[0], np.ones((2, 7)), moment=True)
