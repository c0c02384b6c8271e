"""How fast torch programs run beside the eager module, each other, and ONNX Runtime: interleaved pairs, as for ONNX models."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.measurement import Contender, Speed, Timed, race
from graphopt.measurement.timing import timed_session
from graphopt.programs.calling import Caller, raised, threads_of
from graphopt.programs.captured import Captured
from graphopt.programs.torch_side import quiet

if TYPE_CHECKING:
    import torch

COMPILE_SECONDS = 120.0
_COMPILERS = ("c++", "g++", "clang++", "cl")


def contender(captured: Captured, module: torch.nn.Module, feeds: Mapping[str, Any]) -> Contender:
    """A module that stands by, its inputs in place."""
    call = Caller(captured, module).ready(feeds)
    return lambda: Timed(call)


def race_modules(
    captured: Captured,
    modules: tuple[torch.nn.Module, torch.nn.Module],
    feeds: Mapping[str, Any],
    *,
    threads: int = 0,
    seconds: float = 15.0,
    decide: float | None = None,
) -> Speed:
    """The speed of the second module beside the first."""
    with threads_of(threads):
        both = [contender(captured, module, feeds) for module in modules]
        (speed,) = race(both, threads=threads, max_seconds=seconds, min_seconds=min(1.0, seconds / 5), decide=decide)
    return speed


def compiled(captured: Captured, feeds: Mapping[str, Any], *, seconds: float = COMPILE_SECONDS) -> tuple[Callable[[], Any] | None, str]:
    """What runs the eager module under torch.compile, or None and why there is none. Never raises for what torch does."""
    import torch

    if shutil.which("cl") is None and not any(shutil.which(name) for name in _COMPILERS):
        return None, "torch.compile was not timed: there is no C++ compiler"
    caller = Caller(captured, captured.reference)
    args, kwargs = captured.call_with(caller.tensors(feeds))
    try:
        with _within(seconds), quiet(), torch.inference_mode():
            made = torch.compile(caller.module, dynamic=False)
            made(*args, **kwargs)
    except TimeoutError:
        return None, f"torch.compile was not timed: it took more than {seconds:.0f} seconds"
    except Exception as error:  # the compiler's own kinds, and those of what it calls
        return None, f"torch.compile was not timed: {raised(error)[:300]}"

    def call() -> Any:
        with torch.inference_mode():
            return made(*args, **kwargs)

    return call, ""


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside where it takes longer; without bound where no signal can be had (another thread, Windows)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def speeds(
    captured: Captured,
    program: torch.nn.Module,
    feeds: Mapping[str, Any],
    *,
    onnx: Path | None = None,
    compile: bool = False,
    threads: int = 0,
    provider: str = "cpu",
    seconds: float = 15.0,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Each way of running beside the eager module, all in one run of interleaved batches, and remarks.

    The ways: "eager", the module; "optimized", the rewritten program as a module; "onnxruntime", the ONNX model at
    `onnx` with all of the runtime's optimizations; "compile", the module under torch.compile. Each has `ms`, and all but
    the first `ratio` (above 1: faster than eager), `low`, `high`, `pairs`, `faster`, `slower` and what else `Speed` has.
    """
    notes: list[str] = []
    with threads_of(threads):
        ways: dict[str, Contender] = {
            "eager": contender(captured, captured.reference, feeds),
            "optimized": contender(captured, program, feeds),
        }
        if onnx is not None:
            ways["onnxruntime"] = lambda: timed_session(onnx, feeds, threads=threads, provider=provider)
        if compile:
            call, why = compiled(captured, feeds)
            notes += [why] if why else []
            if call is not None:
                ways["compile"] = lambda: Timed(call)
        found = race(list(ways.values()), threads=threads, provider=provider, max_seconds=seconds)
    rows: dict[str, dict[str, Any]] = {"eager": {"ms": found[0].before_ms}}
    for name, speed in zip(list(ways)[1:], found, strict=True):
        rows[name] = {"ms": speed.after_ms, **speed.to_dict()}
    return rows, notes
