"""Every trial of a compression on disk, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.compression.search import Trial
from graphopt.errors import OutputError

_FILE = "journal.jsonl"


class Journal:
    """Trials by the share and the trial that they began with; each with its model.

    One line a trial, behind a line with what the run is: trials of another run are not gone on from.
    """

    def __init__(self, folder: Path, run: dict[str, Any], *, kept: bool) -> None:
        """run: all that decides what a trial comes to. kept: whether the folder stays when the run is over.

        Raises OutputError where the folder cannot be made, or holds the journal of another run that somebody keeps.
        """
        self.folder, self._kept = folder, kept
        self.trials: dict[tuple[float, int | None], Trial] = {}
        self._numbers: dict[Path, int] = {}
        key = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: no journal can be kept there: {error.strerror}") from None
        head, lines = self._lines()
        if head is not None and head.get("run") == key:
            for line in lines:
                self._take(line)
            return
        if head is not None and kept:
            raise OutputError(f"{folder}: holds the journal of another run (other model, data or options)")
        for file in folder.glob("trial*"):
            file.unlink()
        self._write({"run": key, "of": run}, "w")

    def _lines(self) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        found: list[dict[str, Any]] = []
        with contextlib.suppress(FileNotFoundError), (self.folder / _FILE).open(encoding="utf-8") as file:
            for line in file:
                try:
                    found.append(json.loads(line))
                except ValueError:  # cut off in the middle of a line
                    break
        return (found[0], found[1:]) if found else (None, [])

    def _take(self, line: dict[str, Any]) -> None:
        path = self.folder / line["path"]
        if path.exists():
            key = line.pop("key")
            self.trials[key[0], key[1]] = trial = Trial(**line | {"path": path})
            self._numbers.setdefault(trial.path, len(self._numbers))

    def _write(self, line: dict[str, Any], mode: str = "a") -> None:
        with (self.folder / _FILE).open(mode, encoding="utf-8") as file:
            file.write(json.dumps(line, default=_plain) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def resumed(self) -> int:
        """How many trials were there already."""
        return len(self.trials)

    def number(self, trial: Trial | None) -> int | None:
        """What stands for a trial; None for the model that all began with."""
        return None if trial is None else self._numbers[trial.path]

    def place(self) -> Path:
        """Where the model of the next trial goes."""
        return self.folder / f"trial{len(self._numbers)}.onnx"

    def keep(self, share: float, start: Trial | None, trial: Trial) -> None:
        """Note a trial down."""
        self.trials[share, self.number(start)] = trial
        self._write({**asdict(trial), "path": trial.path.name, "key": [share, self.number(start)]})
        self._numbers.setdefault(trial.path, len(self._numbers))

    def find(self, share: float, start: Trial | None) -> Trial | None:
        """The trial of a share that was made before."""
        return self.trials.get((share, self.number(start)))

    def close(self) -> None:
        """The run is over."""
        if not self._kept:
            shutil.rmtree(self.folder, ignore_errors=True)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)
