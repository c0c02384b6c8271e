"""The images that the digits model was trained on, without their labels: samples to calibrate or to reconstruct on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

HELDOUT = Path(__file__).with_name("heldout.npz")
BATCH = 32


def unlabelled() -> Iterator[dict[str, np.ndarray]]:
    """Feeds with BATCH images each, float32 [batch, 1, 8, 8] in [0, 1]; the held-out ones are not among them.

    The images come with scikit-learn.
    """
    from sklearn.datasets import load_digits

    with np.load(HELDOUT) as held:
        aside = {image.tobytes() for image in held["image"]}
    every = (load_digits().images[:, None] / 16).astype(np.float32)
    images = np.stack([image for image in every if image.tobytes() not in aside])
    for start in range(0, len(images) - BATCH + 1, BATCH):
        yield {"image": images[start : start + BATCH]}
