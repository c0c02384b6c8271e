"""The tuning itself: epochs over the samples, the best weights kept, and a checkpoint to go on from."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.recovery.tuning.batches import Batches, Feeds
from graphopt.recovery.tuning.losses import Loss, loss_of
from graphopt.recovery.tuning.rates import Rate
from graphopt.recovery.tuning.settings import Tuned, Tuning
from graphopt.recovery.tuning.student import Net, Student

_BACKOFFS = 3  # divergences, each with a tenth of the rate, before it is given up
_CACHED = 512 * 2**20  # bytes of what the teacher gives that are kept in memory


def run(
    student: ir.Model, teacher: ir.Model, training: Batches, validation: Batches, settings: Tuning, *,
    threads: int = 0, checkpoint: Path | None = None, stage: Any = None,
) -> Tuned:  # fmt: skip
    """Tune the weights of `student` to give what `teacher` gives on the samples; no labels.

    Args:
        student: its initializers are replaced by the best weights.
        teacher: left alone; with the same inputs and outputs.
        training, validation: samples to tune on, and others by which the best weights and the end are chosen.
        checkpoint: a file that every epoch is kept in; one of a tuning that was cut off is gone on from, bit for bit. It
            is gone when the tuning is over.
        stage: told of the epochs.

    Raises:
        InputError: torch is not installed, an operator cannot be imported or differentiated.
    """
    with _threads(threads):
        return _Loop(student, teacher, training, validation, settings, checkpoint, stage).carry_out()


class _Loop:
    def __init__(
        self, student: ir.Model, teacher: ir.Model, training: Batches, validation: Batches, settings: Tuning,
        checkpoint: Path | None, stage: Any,
    ) -> None:  # fmt: skip
        self.settings, self.training, self.validation = settings, training, validation
        self.checkpoint, self.stage = checkpoint, stage
        self.student = Student(student, settings.inner, keep_zeros=settings.keep_zeros)
        self.teacher = Net(teacher, settings.inner)
        self.teacher.module.requires_grad_(False)
        self._known: dict[int, list[Tensor]] | None = {}  # by batch of the validation samples, which never change
        untouched = self.student.check(next(training.epoch(None)))
        self.loss: Loss = loss_of(settings, self._variances(), self.student.outputs)
        self.rate = Rate(settings, 1 if settings.optimizer == "gd" else training.steps)
        self.optimizer = self._optimizer()
        before = self._validate()
        self.result = Tuned(before, before, untouched=untouched)
        self.best, self.step, self.waited = self.student.state(), 0, 0

    def carry_out(self) -> Tuned:
        settings, result, started = self.settings, self.result, time.perf_counter()
        self._resume()
        while result.ended == "epochs" and result.epochs < settings.epochs:
            if self.stage is not None:
                self.stage.describe(f"tuning, validation loss {result.after:.4g}")
                self.stage(result.epochs, settings.epochs)
            taught = self._epoch(result.epochs)
            judged = self._validate() if math.isfinite(taught) else math.nan
            result.epochs += 1
            result.history.append({"training": taught, "validation": judged, "rate": self.optimizer.param_groups[0]["lr"]})
            if not math.isfinite(judged):
                self._back_off()
            elif judged < result.after:
                result.after, self.best, self.waited = judged, self.student.state(), 0
            else:
                self.waited += 1
                if settings.stop_after and self.waited >= settings.stop_after:
                    result.ended = "no-progress"
            if math.isfinite(judged):
                self.rate.after_epoch(judged)
            if settings.seconds and time.perf_counter() - started > settings.seconds and result.ended == "epochs":
                result.ended = "time"
            self._keep()
        self.student.restore(self.best)
        if settings.normalization == "re-estimated":
            self._estimate()
        self.student.write_back()
        result.seconds = time.perf_counter() - started
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)
        return result

    # --- an epoch -----------------------------------------------------------------------------------------------

    def _epoch(self, number: int) -> float:
        """One epoch; the mean training loss, NaN where it diverged."""
        whole, total, count = self.settings.optimizer == "gd", 0.0, 0
        self.student.train_normalizations(self.settings.normalization == "training")
        self.optimizer.zero_grad(set_to_none=True)
        for feeds in self.training.epoch(self.settings.seed, number):
            rows = _rows(feeds)
            loss = self._loss(feeds)
            value = float(loss.detach())
            if not math.isfinite(value):
                return math.nan
            total, count = total + value * rows, count + rows
            (loss * rows if whole else loss).backward()
            if not whole and not self._move():
                return math.nan
        if whole:
            for weight in self.student.parameters():
                if weight.grad is not None:
                    weight.grad /= count
            if not self._move():
                return math.nan
        self.student.train_normalizations(False)
        return total / count

    def _move(self) -> bool:
        """One step; False where the gradient is not finite."""
        weights = list(self.student.parameters())
        norm = torch.nn.utils.clip_grad_norm_(weights, self.settings.clip or math.inf)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            return False
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate.at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.student.after_step()
        self.step += 1
        return True

    def _loss(self, feeds: Feeds) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(feeds)
        return self.loss(self.student(feeds), wanted)

    @torch.no_grad()
    def _validate(self) -> float:
        """The mean loss over the validation samples."""
        total, count = 0.0, 0
        for number, feeds in enumerate(self.validation.epoch(None)):
            rows = _rows(feeds)
            total += float(self.loss(self.student(feeds), self._taught(number, feeds))) * rows
            count += rows
        return total / count

    def _taught(self, number: int, feeds: Feeds) -> list[Tensor]:
        """What the teacher gives on a batch of the validation samples; kept while it is small."""
        if self._known is not None and number in self._known:
            return self._known[number]
        found = self.teacher(feeds)
        if self._known is not None:
            self._known[number] = found
            if sum(a.nbytes for known in self._known.values() for a in known) > _CACHED:
                self._known = None
        return found

    @torch.no_grad()
    def _variances(self) -> list[float]:
        """Of what the teacher gives over the training samples."""
        sums: list[list[float]] = []
        for feeds in self.training.epoch(None):
            found = [a.double() for a in self.teacher(feeds)]
            sums = sums or [[0.0, 0.0, 0.0] for _ in found]
            for s, a in zip(sums, found, strict=True):
                s[0], s[1], s[2] = s[0] + a.numel(), s[1] + float(a.sum()), s[2] + float((a * a).sum())
        return [max(squares / n - (plain / n) ** 2, 0.0) or squares / n or 1.0 if n else 1.0 for n, plain, squares in sums]

    def _estimate(self) -> None:
        """Statistics anew, kept where they are no worse."""
        before = self._validate()
        kept = self.student.state()
        self.student.estimate_normalizations(self.training.epoch(None))
        after = self._validate()
        if after <= before:
            self.result.after = after
        else:
            self.student.restore(kept)

    # --- trouble, and going on ----------------------------------------------------------------------------------

    def _back_off(self) -> None:
        self.student.train_normalizations(False)
        self.student.restore(self.best)
        self.result.backoffs += 1
        self.rate.scale /= 10
        self.optimizer = self._optimizer()
        if self.result.backoffs > _BACKOFFS:
            self.result.ended = "diverged"

    def _optimizer(self) -> torch.optim.Optimizer:
        s, weights = self.settings, list(self.student.parameters())
        if s.optimizer == "gd":
            return torch.optim.SGD(weights, lr=s.rate, weight_decay=s.weight_decay)
        if s.optimizer == "sgd":
            return torch.optim.SGD(weights, lr=s.rate, momentum=s.momentum, weight_decay=s.weight_decay)
        kind = torch.optim.AdamW if s.optimizer == "adamw" else torch.optim.Adam
        return kind(weights, lr=s.rate, weight_decay=s.weight_decay)

    def _keep(self) -> None:
        if self.checkpoint is None:
            return
        state = {
            "settings": asdict(self.settings), "student": self.student.state(), "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state(), "best": self.best, "step": self.step, "waited": self.waited, "result": asdict(self.result),
        }  # fmt: skip
        part = self.checkpoint.with_name(self.checkpoint.name + ".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def _resume(self) -> None:
        """Go on from the checkpoint, where there is one of the same tuning."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        same = state["settings"] == asdict(self.settings) and state["result"]["before"] == self.result.before
        shapes = {n: tuple(a.shape) for n, a in self.student.state().items()}
        if not same or {n: tuple(a.shape) for n, a in state["student"].items()} != shapes:
            return
        self.student.restore(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.restore(state["rate"])
        self.best, self.step, self.waited = state["best"], state["step"], state["waited"]
        for name, value in state["result"].items():
            setattr(self.result, name, value)


def _rows(feeds: Feeds) -> int:
    return max((len(a) for a in feeds.values() if getattr(a, "ndim", 0)), default=1)


@contextlib.contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
