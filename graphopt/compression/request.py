"""What a compression is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from graphopt.budget import Budget
from graphopt.errors import OptionError
from graphopt.recovery.tuning import Tuning
from graphopt.request import Request

STRATEGIES = ("at-once", "gradual")
_RESERVED = 0.25  # of the budget, for the preset that follows


@dataclass(frozen=True)
class CompressionRequest:
    """What a compression is asked for.

    Attributes:
        run: model, output, metric, budget, options of passes, threads, provider, seed, plugins; its preset names the
            passes that cut, each with an option `ratio`.
        data: samples without labels, as for calibration: most are learned from, the others judge.
        target: speed beside the original that is enough; None: as fast as the budget allows.
        recover: whether layers behind a cut are reconstructed.
        tune: whether what is left is tuned against the original; None: where torch is installed.
        tuning: how.
        strategy: "at-once": every share is cut out of the original; "gradual": a little at a time, out of what was tuned;
            None: gradual where there is tuning.
        trials: shares that are tried at the most.
        seconds: longest time to measure the speed of one trial.
        lossless: the preset before the first cut.
        then: a preset that the result goes through, within what is left of the budget; None: none.
        journal: a folder that every trial is kept in, and that a run that was cut off goes on from; None: one beside the
            output, which is removed when the run is over.
    """

    run: Request
    data: str
    target: float | None = None
    recover: bool = True
    tune: bool | None = None
    tuning: Tuning = field(default_factory=Tuning)
    strategy: str | None = None
    trials: int = 8
    seconds: float = 3.0
    lossless: str = "default"
    then: str | None = None
    journal: Path | None = None

    @property
    def budget(self) -> float:
        """The relative loss that is accepted: 1 % where nothing was said.

        Raises:
            OptionError: the budget is none of a loss.
        """
        if self.run.budget is None:
            return 0.01
        given = Budget.of(self.run.budget)
        if given.kind == "cosine" or (given.kind == "snr" and self.run.metric is not None):
            what = "the metric" if self.run.metric is not None else "the error of the outputs"
            raise OptionError(f"budget {given}: shares are judged by {what}, so the budget is a relative loss, such as 0.01")
        return given.part

    @property
    def budget_of_cuts(self) -> float:
        """The part of it that cuts may use up."""
        return self.budget * (1 - _RESERVED) if self.then is not None else self.budget

    @property
    def journal_folder(self) -> Path:
        """Where the journal is."""
        return self.journal or self.run.destination.with_name(f".{self.run.destination.name}.journal")

    def check(self) -> None:
        """Raises OptionError where a value makes no sense."""
        if self.target is not None and not (math.isfinite(self.target) and self.target > 1):
            raise OptionError(f"the target speed-up must be above 1, not {self.target}")
        if not math.isfinite(self.budget):
            raise OptionError(f"budget must be a finite number, not {self.budget}")
        if self.strategy is not None and self.strategy not in STRATEGIES:
            raise OptionError(f"strategy must be one of {', '.join(STRATEGIES)}, not {self.strategy!r}")
        if self.trials < 1:
            raise OptionError(f"trials must be 1 or more, not {self.trials}")
        self.tuning.check()
