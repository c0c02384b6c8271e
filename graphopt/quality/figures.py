"""How far the outputs of a candidate are from the original's, in figures that need no labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphopt.budget import Budget, decibels
from graphopt.errors import GraphoptError
from graphopt.quality.predictions import agreement
from graphopt.verification import Sample
from graphopt.verification.metrics import NOISE_FACTOR, Leaf, compare, is_float, leaves
from graphopt.verification.original import Original

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Quality:
    """Figures over all outputs and samples.

    Attributes:
        distance: the largest ||a - b|| / ||b|| of any float output on any sample; inf where there is a fault.
        mean_distance: their root mean square.
        cosine, mean_cosine: the least, and the mean.
        top1: part of the predictions that are the original's; None where no output holds scores of classes.
        flips: the largest part of an output's elements that differ, of outputs that are no floats, beyond what the
            original's own rounding changes.
        fault: why outputs cannot be compared at all, or why the model does not run; "" where they can.
        metric: the user's measure; None where it was not taken.
        loss: of the metric, relative to the original's.
    """

    distance: float = 0.0
    mean_distance: float = 0.0
    cosine: float = 1.0
    mean_cosine: float = 1.0
    top1: float | None = None
    flips: float = 0.0
    fault: str = ""
    metric: float | None = None
    loss: float | None = None

    @property
    def snr(self) -> float:
        """The least signal-to-noise ratio in dB; inf where nothing differs."""
        return decibels(self.distance)

    @property
    def noise(self) -> float:
        """What adds up where several faults that know nothing of each other come together: the square of the distance."""
        return math.inf if self.fault else max(self.distance, self.flips) ** 2

    def worse(self, other: Quality) -> Quality:
        """The worse of two, figure by figure."""
        tops = [t for t in (self.top1, other.top1) if t is not None]
        return Quality(
            max(self.distance, other.distance), max(self.mean_distance, other.mean_distance), min(self.cosine, other.cosine),
            min(self.mean_cosine, other.mean_cosine), min(tops, default=None), max(self.flips, other.flips), self.fault or other.fault,
        )  # fmt: skip

    def within(self, budget: Budget, metric: bool) -> bool:
        """Whether a budget allows this; `metric`: it is one of the metric."""
        if self.fault:
            return False
        if metric:
            return self.loss is not None and self.loss <= budget.limit
        return budget.allows(self.distance, self.cosine, self.flips)

    def to_dict(self) -> dict[str, Any]:
        """For the report and the journal: numbers that JSON lacks are None."""
        found = {key: getattr(self, key) for key in _FIGURES} | {"snr": self.snr, "mean_snr": decibels(self.mean_distance)}
        clean = {key: None if value is None or not math.isfinite(value) else value for key, value in found.items()}
        return clean | {"fault": self.fault}

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> Quality:
        """What `to_dict` gave."""
        known = {key: figures[key] for key in _FIGURES}
        for key in ("distance", "mean_distance"):
            known[key] = math.inf if known[key] is None else known[key]
        return cls(fault=figures["fault"], **known)


_FIGURES = ("distance", "mean_distance", "cosine", "mean_cosine", "top1", "flips", "metric", "loss")


@dataclass
class _Sums:
    leaves: list[Leaf] = field(default_factory=list)
    flips: float = 0.0
    same: int = 0
    predictions: int = 0
    fault: str = ""


def measure(original: Original, samples: Sequence[Sample], run: Run) -> Quality:
    """The figures of what `run` gives for samples, beside the original; a model that does not run is a fault, no error."""
    sums = _Sums()
    for sample in samples:
        try:
            found = run(sample.feeds)
        except GraphoptError as error:
            sums.fault = str(error)
            break
        _add(sums, original, sample, found)
        if sums.fault:
            break
    if sums.fault:
        return Quality(math.inf, math.inf, 0.0, 0.0, fault=sums.fault)
    top1 = sums.same / sums.predictions if sums.predictions else None
    if not sums.leaves:
        return Quality(flips=sums.flips, top1=top1)
    distances, cosines = [leaf.distance for leaf in sums.leaves], [leaf.cosine for leaf in sums.leaves]
    count = len(sums.leaves)
    return Quality(
        max(distances), math.sqrt(sum(d * d for d in distances) / count), min(cosines), sum(cosines) / count, top1, sums.flips
    )  # fmt: skip


def _add(sums: _Sums, original: Original, sample: Sample, found: Mapping[str, Any]) -> None:
    """One sample's outputs."""
    expected, noise = original.outputs(sample), original.noise(sample)
    for name in original.output_names:
        ours, theirs = leaves(found.get(name)), leaves(expected[name])
        if [place for place, _ in ours] != [place for place, _ in theirs]:
            sums.fault = f"output {name!r}: its structure is another"
            return
        for i, ((_, a), (_, b)) in enumerate(zip(ours, theirs, strict=True)):
            if noise[name][i].unstable:
                continue
            leaf = compare(a, b, rtol=1.0)
            if leaf.fault:
                sums.fault = f"output {name!r}: {leaf.fault}"
                return
            if is_float(b):
                sums.leaves += [leaf] if b.size else []
                same, predictions = agreement(a, b)
                sums.same, sums.predictions = sums.same + same, sums.predictions + predictions
            else:
                sums.flips = max(sums.flips, leaf.flips if leaf.flips > NOISE_FACTOR * noise[name][i].flips else 0.0)
