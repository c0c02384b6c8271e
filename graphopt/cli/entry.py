"""From arguments to an exit code: every error of the user becomes one line on standard error, never a traceback."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError

FAULT = 2  # the request or the input is at fault
INTERRUPTED = 130  # as a shell reports a process that SIGINT ended
BROKEN_PIPE = 141  # the same for SIGPIPE


def invoke(argv: Sequence[str]) -> int:
    """Carry a command line out; returns its exit code and raises nothing.

    `--debug` anywhere, or GRAPHOPT_DEBUG in the environment, adds the traceback to an error.
    """
    args = list(argv)
    options = args[: args.index("--")] if "--" in args else args
    debug = "--debug" in options or os.environ.get("GRAPHOPT_DEBUG", "") not in ("", "0")
    args = [a for a in options if a != "--debug"] + args[len(options) :]
    try:
        code = _carry_out(args, debug)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except BaseException as error:
        line, code = explained(error)
        if debug and code == FAULT:
            traceback.print_exception(error)
        _tell(line)
    return code


def _carry_out(args: list[str], debug: bool) -> int:
    import typer

    from graphopt.cli.app import command

    whole = command()
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")  # remarks of libraries to their callers are none to a user
        try:
            # Not whole.main(): it has its own ways with Ctrl-C and broken pipes.
            with whole.make_context("graphopt", args) as context:
                result = whole.invoke(context)
        except typer.Exit as done:  # --help, --version
            result = done.exit_code
    return result if isinstance(result, int) else 0


def explained(error: BaseException) -> tuple[str, int]:
    """What to print for an exception, "" for nothing, and the exit code."""
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else FAULT if error.code else 0
        return (str(error.code) if error.code and not isinstance(error.code, int) else ""), code
    if isinstance(error, GraphoptError):
        return str(error), FAULT
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing half-written was left behind", INTERRUPTED
    if hasattr(error, "format_message"):  # a usage error: typer carries its own copy of click's classes, or click's
        return _usage(error), FAULT
    if isinstance(error, MemoryError):
        return f"out of memory{_detail(error)}", FAULT
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename
        return (f"{os.fspath(name)}: " if isinstance(name, str | os.PathLike) else "") + error.strerror, FAULT
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"internal error: {type(error).__name__}{_detail(error)}{where}; --debug shows the traceback", FAULT


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "graphopt")
    return f"{error.format_message().rstrip('.')}; see `{path} --help`"


def _detail(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f": {text}" if text else ""


def _tell(line: str) -> None:
    text = "".join(c if c.isprintable() else "?" for c in " ".join(line.split()))
    if not text:
        return
    message = f"graphopt: error: {text}\n"
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError):  # standard error is closed too: the exit code still tells
        sys.stderr.write(message.encode(encoding, "backslashreplace").decode(encoding))
        sys.stderr.flush()


def _drop_output() -> None:
    """Let what is still buffered go nowhere: the reader of standard output is gone, and flushing at exit would raise."""
    with contextlib.suppress(OSError, ValueError):  # not a real file, as in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
