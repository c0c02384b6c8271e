"""What a run gives to passes that calibrate: statistics on its calibration samples, each worked out once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.calibration.collect import LIMIT, Shown, calibrate
from graphopt.calibration.observers import PLAIN, Statistics
from graphopt.calibration.rows import row_moments
from graphopt.calibration.sources import Given, Source, open_source, split
from graphopt.calibration.stepwise import mean_shifts, thinned
from graphopt.errors import CalibrationError
from graphopt.formats import digest
from graphopt.rewriting.rows import Rows
from graphopt.verification import Sample, synthesize

_GUESSED = 16  # samples that are made up where there are none

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Calibration:
    """Samples to calibrate on, others that are set aside to evaluate on, and what was found out of the first.

    Attributes:
        source: the samples to calibrate on.
        evaluation: those set aside; never calibrated on.
        seed: of the split.
    """

    def __init__(
        self, source: Source, *, evaluation: Source | None = None, seed: int = 0, threads: int = 0, provider: str = "cpu",
        limit: int = LIMIT, folder: Path | None = None, shown: Shown | None = None,
    ) -> None:  # fmt: skip
        self.source = source
        self.evaluation: Source = evaluation if evaluation is not None else Given(())
        self.seed = seed
        self._with = {"threads": threads, "provider": provider, "limit": limit, "folder": folder, "shown": shown}
        self._known: dict[tuple[Any, ...], Statistics] = {}
        self._done: dict[tuple[Any, ...], Any] = {}
        self._shifts: dict[tuple[Any, ...], dict[str, np.ndarray]] = {}

    @classmethod
    def open(
        cls, what: Any, model: ir.Model, *, preprocessing: str | None = None, run: Run | None = None, seed: int = 0, **options: Any
    ) -> Calibration:
        """Calibration on what a user points at (see `open_source`), with a part set aside for evaluation.

        run: runs the original model; the first sample is tried on it.

        Raises CalibrationError where there are no samples or the first does not fit, OptionError as `open_source` does.
        """
        source = open_source(what, model, preprocessing)
        first = next(iter(source), None)
        if first is None:
            raise CalibrationError(f"{source.description}: there are no calibration samples")
        if run is not None:
            run(first.feeds)
        ours, aside = split(source, seed)
        return cls(ours, evaluation=aside, seed=seed, **options)

    @classmethod
    def guess(
        cls, model: ir.Model, run: Run, *, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] | None = None, **options: Any
    ) -> Calibration:
        """Calibration on samples that are made up from the graph, with other numbers than those to verify on.

        Raises CalibrationError where none can be made up.
        """
        made = synthesize(model, run, seed=seed + 1_000_003, shapes=shapes, count=_GUESSED)
        if made.failure or not made.samples:
            why = (made.failure or "").removesuffix("; give some with --samples")
            raise CalibrationError(f"there are no calibration samples; give some with --calibration ({why})")
        samples = tuple(Sample(s.feeds, f"calibration, {s.origin}") for s in made.samples)
        return cls(Given(samples, "synthesized samples", guessed=True), seed=seed, **options)

    def statistics(
        self, model: ir.Model, tensors: Iterable[str], *, method: str | None = None, channels: Mapping[str, int] | None = None,
        moments: Iterable[str] = (), samples: int | None = None,
    ) -> dict[str, Statistics]:  # fmt: skip
        """As `calibrate` has it, over the calibration samples, or `samples` of them, evenly spread.

        What was found of the same graph before is not sought again.

        The same graph is one that would be saved as the same bytes. What does not change between two replays of a
        pipeline is therefore calibrated once.
        """
        channels, moments = dict(channels or {}), set(moments)
        names = list(dict.fromkeys([*tensors, *channels, *sorted(moments)]))
        graph = digest(model)
        keys = {name: (graph, name, method in PLAIN, channels.get(name), name in moments, samples) for name in names}
        missing = [name for name in names if keys[name] not in self._known]
        if missing:
            found = calibrate(
                model, missing, thinned(self.source, samples), method=method, channels={n: channels[n] for n in missing if n in channels},
                moments=[n for n in missing if n in moments], **self._with,
            )  # fmt: skip
            self._known.update({keys[name]: statistics for name, statistics in found.items()})
        return {name: self._known[keys[name]] for name in names}

    def mean_shifts(
        self, model: ir.Model, wanted: Mapping[str, tuple[int, np.ndarray]], *, samples: int | None = None
    ) -> dict[str, np.ndarray]:
        """As `stepwise.mean_shifts` has it, over the calibration samples, or `samples` of them; worked out once, too."""
        if not wanted:
            return {}
        made = hashlib.blake2b(digest(model))
        for name, (axis, mean) in wanted.items():
            made.update(f"{name}\0{axis}\0".encode() + mean.tobytes())
        key = (made.digest(), samples)
        if key not in self._shifts:
            options = {name: self._with[name] for name in ("threads", "provider", "folder", "shown")}
            self._shifts[key] = mean_shifts(model, wanted, thinned(self.source, samples), **options)
        return self._shifts[key]

    def row_moments(
        self, model: ir.Model, wanted: Iterable[Rows], *, samples: int | None = None
    ) -> Iterator[tuple[Rows, np.ndarray | None]]:
        """As `rows.row_moments` has it, over the calibration samples, or `samples` of them. They are not kept: they are large."""
        yield from row_moments(model, wanted, thinned(self.source, samples), **self._with)

    def once(self, model: ir.Model, what: Any, work: Callable[[], Any]) -> Any:
        """The result of some work on a graph and the samples, done once for the same graph and the same `what`."""
        key = digest(model), what
        if key not in self._done:
            self._done[key] = work()
        return self._done[key]

    def known(self, model: ir.Model, tensors: Iterable[str]) -> dict[str, Statistics]:
        """What was found before of tensors of the same graph, those with histograms first; nothing is run."""
        graph = digest(model)
        names = frozenset(tensors)
        found: dict[str, Statistics] = {}
        for (of, name, *_), statistics in self._known.items():
            if of == graph and name in names and (name not in found or found[name].histogram is None):
                found[name] = statistics
        return found

    @property
    def calibrated(self) -> int:
        """How many tensors of how many graphs statistics were taken of."""
        return len({(key[0], key[1]) for key in self._known})

    def warnings(self) -> list[str]:
        """What a user must know of these samples."""
        if self.source.guessed:
            return [
                "CALIBRATED ON SYNTHESIZED SAMPLES: no calibration samples were given, so all ranges are guesses, and what the result "
                "is worth on real inputs is not known; give some with --calibration"
            ]
        if not len(self.evaluation):
            return [f"{self.source.description} holds one calibration sample: none is left to evaluate the result on"]
        return []

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "source": self.source.description, "samples": len(self.source), "evaluation": len(self.evaluation), "seed": self.seed,
            "synthesized": self.source.guessed, "tensors": self.calibrated,
        }  # fmt: skip
