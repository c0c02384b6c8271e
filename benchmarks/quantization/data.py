"""The real inputs that `collect_data.py` gathered, and tones that are made here."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np

DEFAULT_WORK = Path("build/quantization")

SPLITS = ("calibration", "validation", "evaluation")


def work_folder() -> Path:
    """The folder of data and results; a metric that runs inside another process finds it by the environment."""
    return Path(os.environ.get("GRAPHOPT_QUANTIZATION_WORK", DEFAULT_WORK))


@cache
def collected(name: str) -> dict[str, np.ndarray]:
    """Arrays by split, labels under `SPLIT_label`. FileNotFoundError where they were not collected."""
    with np.load(work_folder() / "data" / f"{name}.npz") as found:
        return dict(found)


def there(name: str) -> bool:
    """Whether a set was collected."""
    return (work_folder() / "data" / f"{name}.npz").exists()


# A semitone is a factor of 2 ** (1 / 12), a cent a hundredth of it.
_SEEDS = {"calibration": 0, "validation": 1, "evaluation": 2}


def tones(split: str, count: int, seconds: float, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Voices of a steady pitch with harmonics and noise: float64 [count, samples], and the pitches in Hz [count].

    Pitches are those of piano keys from 33 (55 Hz) to 76 (659 Hz), a little out of tune.
    """
    rng = np.random.default_rng([11, _SEEDS[split], rate])
    time = np.arange(round(seconds * rate)) / rate
    keys = rng.integers(33, 77, count) + rng.uniform(-0.2, 0.2, count)
    pitches = 440.0 * 2 ** ((keys - 69) / 12)
    waves = np.empty((count, len(time)))
    for wave, pitch in zip(waves, pitches, strict=True):
        harmonics = int(rng.integers(3, 12))
        fall = rng.uniform(0.6, 1.6)
        phase = rng.uniform(0, 2 * np.pi, harmonics)
        heard = [k for k in range(1, harmonics + 1) if k * pitch < rate / 2]
        wave[:] = sum(np.sin(2 * np.pi * k * pitch * time + phase[k - 1]) / k**fall for k in heard)
        wave *= rng.uniform(0.2, 0.9) / np.abs(wave).max()
        wave += rng.normal(0, 10 ** rng.uniform(-3.0, -1.7), len(time))
    return waves, pitches
