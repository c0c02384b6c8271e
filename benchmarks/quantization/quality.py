"""How near a result is to the float model, and what it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: The loss that a result may have: 1 %.
BUDGET = 0.01

Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class Agreement:
    """A result beside the float model, on the same inputs.

    cosine: of the outputs, the mean over samples; snr: signal to noise in dB over all samples; both of the worst output.
    top1: share of rows whose largest element stays where it was, in the output that answers; None where there is none.
    """

    cosine: float
    snr: float
    top1: float | None = None


def agreement(expected: Sequence[Outputs], found: Sequence[Outputs], classes: str = "") -> Agreement:
    """Compare outputs, sample by sample. NaN or a changed shape makes cosine and SNR as bad as they can be."""
    cosines: list[float] = []
    ratios: list[float] = []
    for name in expected[0]:
        pairs = [(np.asarray(e[name], np.float64).ravel(), np.asarray(f[name], np.float64).ravel())
                 for e, f in zip(expected, found, strict=True)]  # fmt: skip
        if any(a.shape != b.shape or not np.isfinite(b).all() for a, b in pairs):
            cosines.append(-1.0)
            ratios.append(-math.inf)
            continue
        cosines.append(float(np.mean([cosine(a, b) for a, b in pairs])))
        signal, noise = (sum(float(np.dot(v, v)) for v in vs) for vs in ([a for a, _ in pairs], [a - b for a, b in pairs]))
        ratios.append(math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise))
    top1 = None
    if classes:
        same = [np.asarray(e[classes]).argmax(-1) == np.asarray(f[classes]).argmax(-1) for e, f in zip(expected, found, strict=True)]
        top1 = float(np.concatenate([s.ravel() for s in same]).mean())
    return Agreement(min(cosines), min(ratios), top1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors; 1 where both are zero, 0 where one is."""
    lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not all(lengths):
        return 1.0 if lengths[0] == lengths[1] else 0.0
    return float(np.dot(a, b)) / (lengths[0] * lengths[1])


def loss(before: float | None, after: float | None, near: Agreement) -> float:
    """What part of the score is lost, 0 where it rose; without a score, one minus the cosine."""
    if before is None or after is None:
        return max(0.0, 1 - near.cosine)
    if not math.isfinite(after):
        return 1.0
    return max(0.0, (before - after) / before)
