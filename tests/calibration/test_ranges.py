"""Ranges against their definitions, worked out on the values themselves, and against ONNX Runtime's calibrators."""

import numpy as np
import pytest

from graphopt.calibration import ranges
from graphopt.calibration.histograms import Histogram
from graphopt.calibration.observers import METHODS, Observer, Statistics
from graphopt.calibration.ranges import fake_quantize

RNG = np.random.default_rng(3)
DATA = {
    "normal": RNG.standard_normal(40_000).astype(np.float32),
    "relu": np.maximum(RNG.standard_normal(40_000), 0).astype(np.float32),
    "outliers": np.concatenate([RNG.standard_normal(40_000), [90, -40]]).astype(np.float32),
    "heavy": RNG.standard_t(2, 40_000).astype(np.float32),
    "negative": -np.abs(RNG.standard_normal(40_000)).astype(np.float32),
    "offset": (RNG.standard_normal(40_000) + 30).astype(np.float32),
}


def seen(*arrays: np.ndarray, **options) -> Statistics:
    observer = Observer("x", **options)
    for number, array in enumerate(arrays):
        observer.add(array, f"sample {number}")
    return observer.statistics


def error(x: np.ndarray, low: float, high: float, bits: int, symmetric: bool) -> float:
    wide = x.astype(np.float64)
    return float(((fake_quantize(wide, low, high, bits, symmetric) - wide) ** 2).mean())


@pytest.mark.parametrize("name", list(DATA))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_range_holds_zero_and_stays_within_the_values(name: str, method: str, symmetric: bool) -> None:
    x = DATA[name]
    low, high = seen(x).range(method, symmetric=symmetric)
    top = float(np.abs(x).max())
    assert low <= 0 <= high
    if symmetric:
        assert low == -high
        assert 0 < high <= top
    else:
        assert min(0.0, float(x.min())) <= low
        assert high <= max(0.0, float(x.max()))


def test_min_max_is_exact() -> None:
    parts = np.array_split(DATA["outliers"], 9)
    assert seen(*parts).range("min-max") == (float(DATA["outliers"].min()), 90.0)
    assert seen(*parts).range("min-max", symmetric=True) == (-90.0, 90.0)


def test_moving_average_is_the_mean_of_the_extremes() -> None:
    parts = np.array_split(DATA["heavy"], 16)
    low, high = seen(*parts).range("moving-average")
    assert low == pytest.approx(np.mean([p.min() for p in parts]), rel=1e-6)
    assert high == pytest.approx(np.mean([p.max() for p in parts]), rel=1e-6)


def part_below(x: np.ndarray, border: float, slack: float) -> tuple[float, float]:
    """The part of x that is surely below a border, and that may be, where values are known to within `slack`."""
    return float((x < border - slack).mean()), float((x <= border + slack).mean())


@pytest.mark.parametrize("name", list(DATA))
@pytest.mark.parametrize("percent", [99.0, 99.9])
def test_percentile_leaves_out_what_it_should(name: str, percent: float) -> None:
    x = DATA[name].astype(np.float64)
    found = seen(DATA[name])
    low, high = found.range("percentile", percent=percent)
    one, out = 1.5 / len(x), (100 - percent) / 200
    for border, part in ((low, out), (high, 1 - out)):
        if border != 0:
            surely, maybe = part_below(x, border, found.histogram.width)
            assert surely - one <= part <= maybe + one
    _, top = found.range("percentile", percent=percent, symmetric=True)
    surely, maybe = part_below(np.abs(x), top, found.histogram.width)
    assert surely - one <= percent / 100 <= maybe + one


@pytest.mark.parametrize("name", list(DATA))
@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (8, True), (4, False), (4, True)])
def test_mse_has_the_least_error(name: str, bits: int, symmetric: bool) -> None:
    """No worse than what a search over the values themselves finds among as many ranges, by more than 3 %."""
    x = DATA[name]
    found = error(x, *seen(x).range("mse", bits=bits, symmetric=symmetric), bits, symmetric)
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    if symmetric:
        high = max(-low, high)
        low = -high
    best = min(error(x, low * s, high * s, bits, symmetric) for s in np.linspace(0.02, 1, 100))
    assert found <= best * 1.03


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_clips_outliers_and_keeps_what_is_dense(symmetric: bool) -> None:
    _, high = seen(DATA["outliers"]).range("entropy", symmetric=symmetric)
    assert 2.5 < high < 30
    even = RNG.uniform(-1, 1, 100_000).astype(np.float32)
    _, high = seen(even).range("entropy", symmetric=symmetric)
    assert high > 0.97


def collector(kind: str):
    """ONNX Runtime's collector, with its defaults where they do not matter."""
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    return calibrate.HistogramCollector(
        method=kind, symmetric=False, num_bins=2048, num_quantized_bins=128, percentile=99.9, scenario="same"
    )


@pytest.mark.parametrize("name", list(DATA))
def test_percentile_agrees_with_onnx_runtime(name: str) -> None:
    x = DATA[name][:40_000]
    their = collector("percentile")
    for part in np.array_split(x, 4):
        their.collect({"x": [part]})
    low, high = map(float, their.compute_collection_result()["x"][:2])
    found = seen(x)
    surely = found.range("percentile", percent=99.88), found.range("percentile", percent=99.92)
    close = 2 * (float(np.abs(x).max()) / 1024 + found.histogram.width)
    assert surely[1][0] - close <= min(low, 0) <= surely[0][0] + close
    assert surely[0][1] - close <= max(high, 0) <= surely[1][1] + close


def divergence(counts: np.ndarray, half: int, levels: int) -> float:
    """The divergence of the TensorRT paper, step by step, of a histogram that is symmetric around its middle."""
    middle = len(counts) // 2
    inside = [float(c) for c in counts[middle - half : middle + half]]
    original = list(inside)
    original[0] += float(counts[: middle - half].sum())
    original[-1] += float(counts[middle + half :].sum())
    quantized = [0.0] * len(inside)
    for level in range(levels):
        places = [i for i in range(len(inside)) if i * levels // len(inside) == level]
        filled = [i for i in places if original[i] > 0]
        for i in filled:
            quantized[i] = sum(inside[j] for j in places) / len(filled)
    floor = 1e-4 / len(inside)
    p, q = np.asarray(original) / sum(original), np.asarray(quantized) / sum(quantized)
    return sum(a * np.log(a / max(b, floor)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("name", ["normal", "heavy", "outliers", "relu"])
def test_entropy_has_the_least_divergence(name: str) -> None:
    x = DATA[name]
    made = Histogram(128)
    made.add(x, float(x.min()), float(x.max()))
    _, top = ranges.entropy(made, float(x.min()), float(x.max()), 31, symmetric=True)
    counts = ranges._without_zeros(*ranges._mirrored(made))
    halves = range(16, len(counts) // 2 + 1)
    best = min(halves, key=lambda half: divergence(counts, half, 31))
    assert top == pytest.approx(min(best * made.width, float(np.abs(x).max())))


@pytest.mark.parametrize("name", ["normal", "heavy", "outliers"])
def test_entropy_agrees_with_onnx_runtime(name: str) -> None:
    """Within 35 %: bins that do not divide by the levels, and those without a value, are treated in another way there."""
    x = DATA[name]
    made = Histogram(1024)
    made.add(x, float(x.min()), float(x.max()))
    edges, counts = ranges._mirrored(made)
    low, high = collector("entropy").get_entropy_threshold((counts, edges, x.min(), x.max(), 0), 128)[:2]
    _, top = ranges.entropy(made, float(x.min()), float(x.max()), 128, symmetric=True)
    assert top == pytest.approx(max(-low, high), rel=0.35)


def test_entropy_is_not_led_astray_by_zeros() -> None:
    x = np.concatenate([np.zeros(200_000), np.abs(RNG.standard_normal(40_000))]).astype(np.float32)
    assert seen(x).range("entropy")[1] > 2.5


def test_bad_requests() -> None:
    plain = seen(DATA["normal"], histogram=False)
    assert plain.range()[1] == float(DATA["normal"].max())
    with pytest.raises(ValueError, match="needs a histogram"):
        plain.range("mse")
    with pytest.raises(ValueError, match="none of"):
        plain.range("median")
    with pytest.raises(ValueError, match="no finite values"):
        seen(np.full(3, np.nan, np.float32)).range()
