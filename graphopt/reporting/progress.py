"""Progress on standard error, for stages that take more than a second."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

_DELAY_S = 1.0
# Between the lines of a long stage where standard error is a file.
_LINE_EVERY_S = 30.0


class Stage:
    """A stage in progress. Call it with what is done and, if known, how much there is: stage(3, 10)."""

    def __init__(self, name: str, total: float | None):
        self.name = name
        self.done: float = 0
        self.total = total
        self.start = time.monotonic()

    def __call__(self, done: float, total: float | None = None) -> None:
        self.done = done
        if total is not None:
            self.total = total

    def advance(self, by: float = 1) -> None:
        self.done += by

    def describe(self, name: str) -> None:
        """Renames the stage, such as to the pass that runs."""
        self.name = name


class Progress:
    """Shows the stages of a run, one at a time.

    On a terminal a bar appears once a stage has taken a second, and goes when the stage ends. Elsewhere a stage that
    takes long writes a plain line every half minute. Nothing where `quiet`. Nothing ever goes to standard output.
    """

    def __init__(self, quiet: bool = False, file: TextIO | None = None, delay: float = _DELAY_S, line_every: float = _LINE_EVERY_S):
        self._file = file or sys.stderr
        self._quiet = quiet
        self._terminal = self._file.isatty()
        self._delay = delay
        self._line_every = line_every

    @contextlib.contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Stage]:
        """A stage of the run, to be told of its progress; stages within one are shown as the outer one's."""
        stage = Stage(name, total)
        if self._quiet:
            yield stage
            return
        over = threading.Event()
        show = self._bar if self._terminal else self._lines
        watcher = threading.Thread(target=show, args=(stage, over), name=f"progress of {name}", daemon=True)
        watcher.start()
        self._quiet = True
        try:
            yield stage
        finally:
            self._quiet = False
            over.set()
            watcher.join()

    def _bar(self, stage: Stage, over: threading.Event) -> None:
        if over.wait(self._delay):
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), TimeElapsedColumn())
        # Redrawn four times a second by this thread alone: while timing, no more than that may run beside the model.
        with Bars(*columns, console=Console(file=self._file), transient=True, auto_refresh=False) as bars:
            task = bars.add_task(stage.name, total=stage.total)
            while True:
                bars.update(task, description=stage.name, completed=stage.done, total=stage.total, refresh=True)
                if over.wait(0.25):
                    return

    def _lines(self, stage: Stage, over: threading.Event) -> None:
        while not over.wait(self._line_every):
            part = f" {stage.done:g} of {stage.total:g}," if stage.total else ""
            with contextlib.suppress(OSError, ValueError):  # a closed pipe is no reason to stop the run
                self._file.write(f"{stage.name}:{part} {time.monotonic() - stage.start:.0f} s\n")
                self._file.flush()
