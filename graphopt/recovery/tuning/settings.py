"""How a model is tuned, and what became of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from graphopt.errors import OptionError

OPTIMIZERS = ("gd", "sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "exponential", "cosine", "plateau")
LOSSES = ("auto", "mse", "kl", "cosine")
NORMALIZATION = ("frozen", "training", "re-estimated")


@dataclass(frozen=True)
class Tuning:
    """Settings of a tuning.

    Attributes:
        optimizer: "gd" (one step an epoch, by the gradient over all samples), "sgd" (with momentum), "adam" or "adamw".
        rate: learning rate, at its highest.
        momentum: of "sgd".
        weight_decay: as torch.optim has it: L2 for "gd", "sgd" and "adam", decoupled for "adamw".
        schedule: of the rate over the epochs: "constant", "step" (times `decay` every `every` epochs), "exponential" (times
            `decay` every epoch), "cosine" (to zero), "plateau" (times `decay` where the validation loss has not fallen
            for `patience` epochs).
        warmup: steps over which the rate rises from zero.
        epochs: at the most.
        batch: rows of a step, where the model's inputs share a batch dimension; else one sample is one step.
        clip: largest norm of the gradient over all weights; 0: not clipped.
        stop_after: epochs without a lower validation loss after which it ends; 0: never.
        normalization: statistics of BatchNormalization: "frozen", "training" (the batch's, and running ones follow), or
            "re-estimated" (frozen, and taken anew from the training samples at the end).
        loss: between outputs and those of the teacher: "mse" (over the variance of the teacher's), "kl" (of softmax along
            the last axis, at `temperature`; Hinton et al. 2015), "cosine" (1 - cosine along the last axis), "auto": mse.
        temperature: of "kl".
        inner: names of values inside the graph, in both models, that are to be alike too (Romero et al. 2015); by "mse".
        inner_weight: what they count for together, beside the outputs.
        keep_zeros: weights of which a tenth or more is zero keep these zeros.
        seed: of the order of the samples.
        seconds: longest time; 0: no limit.
    """

    optimizer: str = "adam"
    rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    decay: float = 0.1
    every: int = 10
    patience: int = 2
    warmup: int = 0
    epochs: int = 20
    batch: int = 32
    clip: float = 1.0
    stop_after: int = 5
    normalization: str = "frozen"
    loss: str = "auto"
    temperature: float = 2.0
    inner: tuple[str, ...] = ()
    inner_weight: float = 1.0
    keep_zeros: bool = True
    seed: int = 0
    seconds: float = 0.0

    def check(self) -> None:
        """Raises OptionError where a value makes no sense."""
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("loss", LOSSES), ("normalization", NORMALIZATION)):
            if getattr(self, name) not in known:
                raise OptionError(f"tuning: {name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name, least in (("epochs", 0), ("batch", 1), ("every", 1), ("patience", 0), ("warmup", 0), ("stop_after", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"tuning: {name} must be {least} or more, not {getattr(self, name)}")
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise OptionError(f"tuning: {one.name} must be 0 or more, not {value}")
        if not self.rate > 0 or not self.temperature > 0:
            raise OptionError("tuning: rate and temperature must be above 0")
        if not (self.momentum < 1 and 0 < self.decay <= 1):
            raise OptionError("tuning: momentum must be below 1, decay above 0 and at most 1")


@dataclass
class Tuned:
    """What became of it.

    Attributes:
        before, after: validation loss of the weights that were there, and of the best, which the model has now.
        epochs: that were gone through, over all sittings.
        history: of each epoch the mean training loss, the validation loss and the rate at its end.
        ended: why it ended: "epochs", "no-progress", "time" or "diverged".
        backoffs: how often it diverged and went on from the best weights at a tenth of the rate.
        untouched: weights that no gradient reaches.
        seconds: of this sitting.
    """

    before: float
    after: float
    epochs: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    ended: str = "epochs"
    backoffs: int = 0
    untouched: list[str] = field(default_factory=list)
    seconds: float = 0.0


def parse(words: tuple[str, ...]) -> Tuning:
    """Settings from "name=value" words, with the types of the fields.

    Raises OptionError where a name is unknown or a value makes no sense.
    """
    types = {f.name: type(f.default) for f in fields(Tuning)}
    found: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in types:
            raise OptionError(f"tuning: {word!r}: expected NAME=VALUE with NAME one of {', '.join(n.replace('_', '-') for n in types)}")
        kind = types[name]
        try:
            if kind is bool:
                found[name] = {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
            elif kind is tuple:
                found[name] = tuple(part for part in text.split(",") if part)
            else:
                found[name] = kind(text)
        except (KeyError, ValueError):
            raise OptionError(f"tuning: {name.replace('_', '-')}={text!r} is no {kind.__name__}") from None
    settings = Tuning(**found)  # type: ignore[arg-type]
    settings.check()
    return settings
