"""Activations whose channels differ much in range: their scale goes into the weights, which are rounded by channel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.rewriting import Context, Effect, Pass, Refuse, guards, option

from ..algebra.linear import DEFAULT_GROWTH, GROWTH_HELP, read
from .arithmetic import TOP
from .scaling import Group, by_input, find_groups, moved, positive

if TYPE_CHECKING:
    from graphopt.rewriting.context import Statistics

_LEVELS = 255  # steps of an activation's range
_QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99)  # of the channels' ranges, beyond which they are brought down


@dataclass(frozen=True)
class SmoothActivations(Pass):
    """Move scales by channel from activations into the weights that read them, so that 8 bits hold both better.

    Xiao et al. 2022, "SmoothQuant", equation 4: s = max|x|^alpha / max|w|^(1 - alpha). x / s is folded into what computes
    x: a LayerNormalization, or weights, past operators that let a scale through. The noise that rounding will make at the
    outputs is predicted from ranges and second moments, with and without: of several alphas, and of scales that only bring
    down the channels that stick out, the best is taken, and none where nothing is gained.
    """

    name = "smooth-activations"
    effect = Effect.ROUNDING
    calibrates = True

    alpha: float = option(-1.0, "how much of a range goes into the weights, 0 to 1; -1: the best by prediction", minimum=-1, maximum=1)
    least_gain: float = option(1.0, "what must be gained, in dB of a product's predicted rounding noise", minimum=0)
    insert: bool = option(False, "multiply in front of Gemm and MatMul where there is nothing to fold into")
    insert_gain: float = option(3.0, "what must be gained for that, in dB", minimum=0)
    least_values: int = option(512, "values of each channel that must have been seen; other samples go beyond fewer", minimum=0)
    max_growth_bytes: int = option(DEFAULT_GROWTH, GROWTH_HELP, minimum=0)

    def run(self, context: Context) -> None:
        groups = find_groups(context)
        if not groups:
            return
        found = context.calibrate((), method="min-max", channels={group.value: group.axis for group in groups})
        gains = []
        for group in groups:
            try:
                scale, gain = self._scale(group, found[group.value], context)
            except Refuse as refusal:
                context.log.refuse(group.readers[0], refusal.reason)
                continue
            if scale is None or gain < self.least_gain:
                continue
            insert = self.insert and gain >= self.insert_gain and group.axis == -1
            if not moved(group, scale, context, insert=insert, limit=self.max_growth_bytes):
                continue
            gains.append(gain)
        if gains:
            fall = f"rounding noise predicted to fall by {np.median(gains):.1f} dB in the median"
            context.log.note(f"{len(gains)} activations smoothed; {fall}")

    def _scale(self, group: Group, statistics: Statistics, context: Context) -> tuple[np.ndarray | None, float]:
        """The scale, and what it gains in dB; None where there is none."""
        guards.require(statistics.fault is None, f"tensor {group.value.name!r} cannot be smoothed: {statistics.fault}")
        noise = Noise(group, statistics, context)
        seen = statistics.elements // noise.channels
        guards.require(seen >= self.least_values, f"only {seen} values of each channel were seen, too few to know its range by")
        candidates = [noise.balanced(self.alpha)] if self.alpha >= 0 else noise.candidates()
        best, before = None, noise.at(np.ones(noise.channels))
        least = before
        for scale in candidates:
            if (at := noise.at(scale)) < least:
                best, least = scale, at
        return best, 10 * math.log10(before / least) if least > 0 else 0.0


class Noise:
    """The squared error that rounding is predicted to make at the outputs of the readers of a value, by its scale.

    Rounding to steps of size d makes an error with the variance d^2 / 12, independent of everything else.
    """

    def __init__(self, group: Group, statistics: Statistics, context: Context) -> None:
        low, high, square = statistics.channel_low, statistics.channel_high, statistics.channel_square
        assert low is not None and high is not None and square is not None
        self.low, self.high, self.square, self.channels = np.minimum(low, 0), np.maximum(high, 0), square, low.size
        self.range = np.maximum(-self.low, self.high)
        self.tops: list[np.ndarray] = []  # of each reader: largest weights [groups, inputs, outputs]
        self.taps: list[int] = []
        self.norm = np.zeros(low.size)  # sums of squared weights by input channel
        for node in group.readers:
            linear = read(node, context)
            guards.require(linear.inputs == low.size, "its input has another number of channels on the samples")
            weight = by_input(linear)
            guards.finite(weight, "the scales")
            self.tops.append(np.abs(weight).max(axis=3))
            self.taps.append(weight.shape[3])
            self.norm += np.einsum("giot,giot->gi", weight, weight, dtype=np.float64).reshape(-1)
        self.weight = np.max([top.max(axis=2).reshape(-1) for top in self.tops], axis=0).astype(np.float64)

    def at(self, scale: np.ndarray) -> float:
        span = float((self.high / scale).max() - (self.low / scale).min())
        total = (span / _LEVELS) ** 2 * float((scale**2 * self.norm).sum())
        square = self.square / scale**2
        for top, taps in zip(self.tops, self.taps, strict=True):
            by = scale.astype(np.float32).reshape(*top.shape[:2], 1)
            steps = (top * by).max(axis=1).astype(np.float64) / TOP
            total += taps * float((steps**2).sum(axis=1) @ square.reshape(top.shape[:2]).sum(axis=1))
        return total / 12

    def balanced(self, alpha: float) -> np.ndarray:
        """The scale of the paper, which leaves the largest value as it is."""
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = positive(self.range**alpha / self.weight ** (1 - alpha), (self.range, self.weight))
        return np.clip(scale * (self.range / scale).max() / max(self.range.max(), np.finfo(np.float64).tiny), 1e-6, 1e6)

    def candidates(self) -> Iterator[np.ndarray]:
        for alpha in np.arange(1, 11) / 10:
            yield self.balanced(float(alpha))
        for border in np.quantile(self.range, _QUANTILES):
            if border > 0:
                yield np.maximum(1.0, self.range / border)
