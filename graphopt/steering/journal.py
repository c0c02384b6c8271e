"""What a search measured, on disk as it goes, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from graphopt.errors import OutputError
from graphopt.quality import Quality

FORMAT = 1


class Journal:
    """A file of lines of JSON: first what the search is of, then one line for each measurement.

    Attributes:
        path: the file; None: nothing is written.
        taken: how many measurements of an earlier search were found.
        stale: why the file that was there was not used; "" where it was, or where there was none.
        made: how many measurements were added.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        """key: a digest of all that the measurements depend on. A file of another key is begun anew.

        Raises:
            OutputError: what stands there is no journal, or it cannot be written.
        """
        self.path = path
        self.stale = ""
        self.made = 0
        self._known: dict[tuple[str, frozenset[int]], Quality] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        head = {"graphopt.search": FORMAT, "key": key}
        whole = self._read(path, head)
        self.taken = len(self._known)
        try:
            self._file = path.open("r+" if whole else "w", encoding="utf-8")
            if whole:  # a line that was cut off by the interruption is written over
                self._file.seek(whole)
                self._file.truncate()
            else:
                self._write(head)
        except OSError as error:
            raise OutputError(f"{path}: the journal of the search cannot be written: {error.strerror}") from None

    taken = 0

    def _read(self, path: Path, head: dict[str, Any]) -> int:
        """Take over what a file of the same search holds; up to which byte it is whole, 0 where it is of no use."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise OutputError(f"{path}: the journal of the search cannot be read: {error.strerror}") from None
        lines = data.splitlines(keepends=True)
        first = _parsed(lines[0]) if lines else None
        if data and (first is None or "graphopt.search" not in first):
            raise OutputError(f"{path}: stands where the journal of the search goes, and is none; name another one with --journal")
        if first != head:
            self.stale = f"the journal {path} was of another model, other options or other samples, and was begun anew" if data else ""
            return 0
        whole = len(lines[0])
        for line in lines[1:]:
            entry = _parsed(line)
            if entry is None or not line.endswith(b"\n"):
                break
            try:
                self._known[entry["what"], frozenset(entry["of"])] = Quality.from_dict(entry["quality"])
            except (KeyError, TypeError):
                break
            whole += len(line)
        return whole

    def get(self, what: str, of: Iterable[int]) -> Quality | None:
        """What was measured before; `what` is measured: "alone" or "held", `of` which applications."""
        return self._known.get((what, frozenset(of)))

    def put(self, what: str, of: Iterable[int], quality: Quality) -> None:
        """Keep a measurement."""
        numbers = frozenset(of)
        self._known[what, numbers] = quality
        self.made += 1
        self._write({"what": what, "of": sorted(numbers), "quality": quality.to_dict()})

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: the journal of the search cannot be written: {error.strerror}") from None

    def close(self, *, remove: bool = False) -> None:
        """Let go of the file; `remove`: the search is over, and nobody needs it any more."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if remove and self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
