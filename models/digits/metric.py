"""Quality of the digits model: top-1 accuracy on the samples that training never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

HELDOUT = Path(__file__).with_name("heldout.npz")

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def accuracy(run: Run, part: str | None = None) -> float:
    """Share of held-out digits that the model gets right, 0 to 1.

    `part`: "validation" or "test", every other of them; None: all.

    `run` runs the model: it takes inputs by name (`image`, float32 [batch, 1, 8, 8]) and returns outputs by
    name (`logits`, float32 [batch, 10]).
    """
    with np.load(HELDOUT) as held:
        chosen = {None: slice(None), "validation": slice(0, None, 2), "test": slice(1, None, 2)}[part]
        images, labels = held["image"][chosen], held["label"][chosen]
    logits = np.asarray(run({"image": images})["logits"])
    return float((logits.argmax(axis=1) == labels).mean())
