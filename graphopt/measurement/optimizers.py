"""Which of the runtime's own optimizers change a model, as its log tells."""

from __future__ import annotations

import os
import re
import subprocess
import sys

_LINE = re.compile(r"GraphTransformer (\S+) modified: 1 with status: OK")
_SECONDS = 60.0
_SCRIPT = """
import sys
from graphopt import runtime
INFO = 1
runtime.session(sys.argv[1], threads=int(sys.argv[2]), provider=sys.argv[3], severity=INFO)
"""


def active_optimizers(model: str | os.PathLike, *, threads: int = 0, provider: str = "cpu", seconds: float = _SECONDS) -> tuple[str, ...]:
    """The names of the runtime's optimizers that change this model, in their order; empty where that cannot be told.

    The names are those that a session's `disabled_optimizers` takes. The runtime tells them only in its log, which goes
    to the standard error of the process: so another process makes the session, for `seconds` at the most.
    """
    command = [sys.executable, "-c", _SCRIPT, os.fspath(model), str(threads), provider]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return named(done.stderr) if done.returncode == 0 else ()


def named(log: str) -> tuple[str, ...]:
    """The optimizers that a log of the runtime says changed something, each once."""
    return tuple(dict.fromkeys(_LINE.findall(log)))
