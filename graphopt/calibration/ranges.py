"""Ranges out of histograms: which part of what a tensor takes an integer type should stand for.

    percentile  the range that leaves out the same part of the values at either end (Wu et al., "Integer Quantization for
                Deep Learning Inference: Principles and Empirical Evaluation", 2020, section 4.3)
    entropy     the range after which the quantized distribution has the least Kullback-Leibler divergence from the
                original one (Migacz, "8-bit Inference with TensorRT", GTC 2017)
    mse         the range with the least mean squared error (Sung et al., "Resiliency of Deep Neural Networks under
                Quantization", 2015; Banner et al., "Post training 4-bit quantization of convolutional networks", 2019)

Each takes a histogram and the exact extremes of what it counted, and returns a range within them.
"""

from __future__ import annotations

import numpy as np

from graphopt.calibration.histograms import Histogram

Range = tuple[float, float]

_TRIED = 128  # ranges that are tried by entropy and by mse
_LEAST = 1 / 64  # of the full range: narrower ones are not tried by mse
_EPSILON = 1e-4  # what stands for no probability in the divergence, as in ONNX Runtime


def percentile(histogram: Histogram, low: float, high: float, percent: float, symmetric: bool) -> Range:
    """The range that `percent` of the values lie in, what is left out shared between both ends; of the absolute values
    where `symmetric`. Within a bin, values count as evenly spread."""
    part = percent / 100
    if symmetric:
        edges, counts = _folded(histogram)
        top = _quantile(edges, counts, part)
        return -min(top, max(-low, high)), min(top, max(-low, high))
    out = (1 - part) / 2
    edges = histogram.edges
    return max(low, _quantile(edges, histogram.counts, out)), min(high, _quantile(edges, histogram.counts, 1 - out))


def entropy(histogram: Histogram, low: float, high: float, levels: int, symmetric: bool) -> Range:
    """The range [-t, t], cut down to low and high unless `symmetric`, whose `levels` values tell the least of a lie.

    As in ONNX Runtime the candidate range grows around zero. What it leaves out counts as its outermost bins in the
    original distribution, and not at all in the quantized one. Zeros, which every grid stands for exactly and of which an
    activation function can give very many, count no more than their neighbours, as in NVIDIA's pytorch-quantization.
    128 of the possible borders are tried.
    """
    edges, counts = (histogram.edges, histogram.counts) if not symmetric else _mirrored(histogram)
    counts = _without_zeros(edges, counts)
    borders = np.unique(np.abs(edges))
    borders = borders[borders > 0]
    width = histogram.width
    tried = [borders[round(i)] for i in np.linspace(0, len(borders) - 1, min(_TRIED, len(borders)))]
    best = (np.inf, float(max(abs(low), abs(high))))
    for border in tried:
        first = max(0, round((-border - edges[0]) / width))
        last = min(len(counts), round((border - edges[0]) / width))
        if last - first < levels and last - first < len(counts):
            continue  # fewer bins than levels: nothing can be told of what the levels lose
        divergence = _divergence(counts, first, last, levels)
        if divergence < best[0]:
            best = divergence, float(border)
    top = min(best[1], max(-low, high))
    return (-top, top) if symmetric else (max(low, -top), min(high, top))


def least_error(histogram: Histogram, low: float, high: float, bits: int, symmetric: bool) -> Range:
    """The range with the least mean squared error after rounding to `bits` bits and clipping.

    Both ends are moved inwards together in 128 steps, then each by itself, twice. Every value of a bin counts as its
    middle.
    """
    filled = histogram.counts > 0
    centers, counts = np.clip(histogram.centers[filled], low, high), histogram.counts[filled].astype(np.float64)

    def error(a: float, b: float) -> float:
        return float(counts @ (fake_quantize(centers, a, b, bits, symmetric) - centers) ** 2)

    shares = np.linspace(_LEAST, 1, _TRIED)
    if symmetric:
        top = max(-low, high)
        best = top * float(min(shares, key=lambda s: error(-top * s, top * s)))
        return -best, best
    low, high = min(low, 0.0), max(high, 0.0)
    share = float(min(shares, key=lambda s: error(low * s, high * s)))
    a, b = low * share, high * share
    for _ in range(2 if low < 0 < high else 0):
        a = low * float(min(shares, key=lambda s: error(low * s, b)))
        b = high * float(min(shares, key=lambda s: error(a, high * s)))
    return a, b


def fake_quantize(x: np.ndarray, low: float, high: float, bits: int, symmetric: bool) -> np.ndarray:
    """x, rounded to what an integer of `bits` bits can stand for in a range, as QuantizeLinear and DequantizeLinear do.

    Symmetric: q in [-(2^(bits-1) - 1), 2^(bits-1) - 1] around zero. Otherwise q in [0, 2^bits - 1], with a zero point.
    """
    if symmetric:
        steps = 2 ** (bits - 1) - 1
        scale = max(-low, high) / steps
        return x if scale == 0 else np.clip(np.rint(x / scale), -steps, steps) * scale
    low, high = min(low, 0.0), max(high, 0.0)
    steps = 2**bits - 1
    scale = (high - low) / steps
    if scale == 0:
        return x
    zero = np.clip(np.rint(-low / scale), 0, steps)
    return (np.clip(np.rint(x / scale) + zero, 0, steps) - zero) * scale


def _quantile(edges: np.ndarray, counts: np.ndarray, part: float) -> float:
    """The value below which a part of the counted ones lies."""
    cumulated = np.concatenate([[0], np.cumsum(counts)])
    wanted = part * cumulated[-1]
    # The first border that reaches it: of an empty stretch, the end that lies nearer to the middle.
    after = int(np.searchsorted(cumulated, wanted, side="left" if part > 0.5 else "right"))
    after = min(max(after, 1), len(counts))
    inside = counts[after - 1]
    share = (wanted - cumulated[after - 1]) / inside if inside else 1.0
    return float(edges[after - 1] + min(max(share, 0.0), 1.0) * (edges[after] - edges[after - 1]))


def _folded(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """The histogram of the absolute values: borders from zero on, and counts."""
    number = np.arange(histogram.first, histogram.first + len(histogram.counts))
    place = np.where(number < 0, -number - 1, number)
    counts = np.bincount(place, weights=histogram.counts).astype(np.int64)
    return np.arange(len(counts) + 1) * histogram.width, counts


def _mirrored(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """The histogram over a range that is symmetric around zero: borders and counts."""
    half = max(-histogram.first, histogram.first + len(histogram.counts))
    counts = np.zeros(2 * half, np.int64)
    counts[half + histogram.first : half + histogram.first + len(histogram.counts)] = histogram.counts
    return np.arange(-half, half + 1) * histogram.width, counts


def _without_zeros(edges: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The counts with the bin that begins at zero no fuller than those beside it."""
    place = int(np.searchsorted(edges, 0.0))
    if place >= len(counts) or edges[place] != 0:
        return counts
    beside = [counts[i] for i in (place - 1, place + 1) if 0 <= i < len(counts)]
    changed = counts.copy()
    changed[place] = min(counts[place], max(beside, default=counts[place]))
    return changed


def _divergence(counts: np.ndarray, first: int, last: int, levels: int) -> float:
    """The divergence of the bins from `first` to `last`, brought to `levels` levels, from all of them clipped to these."""
    inside = counts[first:last].astype(np.float64)
    original = inside.copy()
    original[0] += counts[:first].sum()
    original[-1] += counts[last:].sum()
    level = np.arange(len(inside)) * levels // len(inside)
    held = np.bincount(level, weights=inside, minlength=levels)
    filled = np.bincount(level, weights=original > 0, minlength=levels)
    quantized = np.where(original > 0, (held / np.maximum(filled, 1))[level], 0.0)
    if not quantized.any():
        return np.inf
    p, q = original / original.sum(), quantized / quantized.sum()
    present = p > 0
    return float((p[present] * np.log(p[present] / np.maximum(q[present], _EPSILON / len(p)))).sum())
