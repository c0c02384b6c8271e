"""The command line. One file a command; what a command needs is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The `graphopt` command: carries out `argv` (default: the process's arguments) and exits."""
    import signal
    import sys

    from graphopt.cli.entry import invoke

    # A terminated run unwinds, so that its temporary files go; 143 is what a shell reports for it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(invoke(sys.argv[1:] if argv is None else argv))
