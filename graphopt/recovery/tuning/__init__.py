"""Tuning: what is left of a model after a lossy change is trained to give what the original gives.

Importing this package does not import torch; :func:`tune` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.extras import require_torch
from graphopt.recovery.tuning.settings import LOSSES, NORMALIZATION, OPTIMIZERS, SCHEDULES, Tuned, Tuning

__all__ = ["LOSSES", "NORMALIZATION", "OPTIMIZERS", "SCHEDULES", "Tuned", "Tuning", "tune"]


def tune(
    student: ir.Model,
    teacher: ir.Model,
    training: Iterable[Any],
    validation: Iterable[Any],
    settings: Tuning | None = None,
    *,
    threads: int = 0,
    checkpoint: Path | None = None,
    stage: Any = None,
) -> Tuned:
    """Tune the weights of `student` until it gives what `teacher` gives, on samples without labels (distillation).

    Args:
        student: its float32 initializers are replaced by the weights with the least validation loss.
        teacher: the model that it comes from, with the same inputs and outputs.
        training, validation: samples, which must not overlap.
        checkpoint: a file to keep every epoch in, and to go on from, bit for bit.

    Raises:
        InputError: torch is not installed, or an operator cannot be imported or differentiated.
        CalibrationError: there are no samples. OptionError: a setting makes no sense.
    """
    require_torch("tuning")
    from graphopt.recovery.tuning.batches import Batches
    from graphopt.recovery.tuning.loop import run

    settings = settings or Tuning()
    settings.check()
    taught, judged = (Batches(samples, teacher, settings.batch) for samples in (training, validation))
    return run(student, teacher, taught, judged, settings, threads=threads, checkpoint=checkpoint, stage=stage)
