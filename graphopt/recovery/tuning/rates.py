"""The learning rate over the steps of a tuning."""

from __future__ import annotations

import math
from typing import Any

from graphopt.recovery.tuning.settings import Tuning


class Rate:
    """The learning rate: a function of the step, and of how the validation loss went where the schedule is "plateau".

    Attributes:
        scale: what a divergence has lowered it by.
    """

    def __init__(self, settings: Tuning, steps: int) -> None:
        """steps: in an epoch."""
        self.settings, self.steps = settings, max(1, steps)
        self.scale = 1.0
        self._fallen = 1.0  # by plateaus
        self._best = math.inf
        self._waited = 0

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0 over the whole tuning."""
        s = self.settings
        rate = s.rate * self.scale * self._fallen
        if step < s.warmup:
            return rate * (step + 1) / s.warmup
        epoch = step // self.steps
        if s.schedule == "step":
            return rate * s.decay ** (epoch // s.every)
        if s.schedule == "exponential":
            return rate * s.decay**epoch
        if s.schedule == "cosine":  # Loshchilov and Hutter 2017, without restarts
            whole = max(1, s.epochs * self.steps - s.warmup)
            return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - s.warmup) / whole)))
        return rate

    def after_epoch(self, loss: float) -> None:
        """Told of the validation loss after each epoch."""
        if loss < self._best:
            self._best, self._waited = loss, 0
            return
        self._waited += 1
        if self.settings.schedule == "plateau" and self._waited > self.settings.patience:
            self._fallen *= self.settings.decay
            self._waited = 0

    def state(self) -> dict[str, Any]:
        """What it remembers."""
        return {"scale": self.scale, "fallen": self._fallen, "best": self._best, "waited": self._waited}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.scale, self._fallen, self._best, self._waited = state["scale"], state["fallen"], state["best"], state["waited"]
