"""Convolutions of one input, added up, as one convolution: the arithmetic, on arrays.

Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again", section 3.3, and "Diverse Branch Block", section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.rewriting import Refuse

from . import arithmetic


@dataclass(frozen=True)
class Place:
    """Where a branch has its taps over the common input: in each spatial axis from place `first` on, `step` apart.

    `excess` is by how much the output is longer than the input at stride 1, an axis.
    """

    first: tuple[int, ...]
    step: tuple[int, ...]
    taps: tuple[int, ...]
    excess: tuple[int, ...]

    @classmethod
    def of(cls, begins: Sequence[int], ends: Sequence[int], step: Sequence[int], taps: Sequence[int]) -> Place:
        """The place of a window that pads `begins` and `ends`."""
        excess = tuple(b + e - s * (t - 1) for b, e, s, t in zip(begins, ends, step, taps))
        return cls(tuple(-b for b in begins), tuple(step), tuple(taps), excess)

    @classmethod
    def of_identity(cls, rank: int) -> Place:
        """The place of the input itself."""
        return cls((0,) * rank, (1,) * rank, (1,) * rank, (0,) * rank)

    @property
    def begins(self) -> tuple[int, ...]:
        """What is padded before each axis."""
        return tuple(-f for f in self.first)

    @property
    def ends(self) -> tuple[int, ...]:
        """What is padded behind each axis."""
        return tuple(e + t * s - s - b for e, t, s, b in zip(self.excess, self.taps, self.step, self.begins))


@dataclass(frozen=True)
class Part:
    """A branch: a convolution (its weight and bias), or the input, averaged over its taps, scaled and shifted per channel."""

    place: Place
    weight: np.ndarray | None
    bias: np.ndarray
    mul: np.ndarray | None = None


def covering(places: Sequence[Place]) -> Place:
    """The least convolution whose taps cover those of all."""
    if len({p.excess for p in places}) > 1:
        raise Refuse("the branches pad to different sizes")
    first, steps, taps = [], [], []
    for axis in range(len(places[0].taps)):
        step = {p.step[axis] for p in places if p.taps[axis] > 1} or {1}
        if len(step) > 1:
            raise Refuse("the branches differ in their dilations")
        (gap,) = step
        begins = [p.first[axis] for p in places]
        if any((b - begins[0]) % gap for b in begins):
            raise Refuse("the taps of the branches do not fall on one grid")
        ends = [p.first[axis] + (p.taps[axis] - 1) * gap for p in places]
        first.append(min(begins))
        steps.append(gap)
        taps.append((max(ends) - min(begins)) // gap + 1)
    return Place(tuple(first), tuple(steps), tuple(taps), places[0].excess)


def guard_cost(places: Sequence[Place], convolutions: Sequence[bool], merged: Place, depthwise: bool) -> None:
    """Refuse where the one convolution would compute more than the branches do; an average is cheap but beside depthwise ones."""
    spent = sum(math.prod(p.taps) if conv or depthwise else 1 for p, conv in zip(places, convolutions))
    if math.prod(merged.taps) > spent:
        raise Refuse("one convolution that covers both would compute more than they do")


def combine(parts: Sequence[Part], shape: Sequence[int], merged: Place, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Weight, of a shape that begins like `shape`, and bias of the sum of the branches, in the type `dtype`."""
    channels = shape[0]
    weight, bias = np.zeros((*shape[:2], *merged.taps)), np.zeros(channels)
    for part in parts:
        place = part.place
        start = [(f - m) // s for f, m, s in zip(place.first, merged.first, merged.step)]
        window = tuple(slice(b, b + t) for b, t in zip(start, place.taps))
        if part.weight is not None:
            weight[(slice(None), slice(None), *window)] += part.weight
        else:
            mul = np.ones(channels) if part.mul is None else part.mul
            outputs = np.arange(channels)
            weight[(outputs, outputs % shape[1], *window)] += (mul / math.prod(place.taps)).reshape(-1, *[1] * len(window))
        bias += part.bias
    return arithmetic.rounded(weight, dtype, "the weight"), arithmetic.rounded(bias, dtype, "the bias")
