"""What commands print and write: JSON alone on standard output, text, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphopt.errors import OutputError


@contextlib.contextmanager
def only_result(wanted: bool = True) -> Iterator[None]:
    """Inside, whatever prints on standard output (plug-ins, metrics, libraries) prints on standard error instead."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    saved = None
    with contextlib.suppress(OSError, ValueError):  # not a real file, as in a test
        if sys.stdout.fileno() == 1:
            saved = os.dup(1)
            os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    from graphopt.reporting.report import plain

    print(json.dumps(plain(value), indent=2, ensure_ascii=not _unicode(), allow_nan=False))


def print_text(text: str) -> None:
    """Print text that may hold anything, names of nodes for instance, on whatever standard output can show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def remark(text: str) -> None:
    """A line on standard error that is no error."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    with contextlib.suppress(OSError):
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        sys.stderr.write(f"graphopt: {line}\n".encode(encoding, "backslashreplace").decode(encoding))


def check_target(path: Path) -> None:
    """Raises OutputError where a file cannot be written to `path`, before any work is done for it."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: the folder {path.parent} cannot be written to")


def _unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
