"""The user's own measure of quality: a function from a way to run the model to one number."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import InputError, OptionError


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes:
        name: as it was asked for.
        function: takes `run`, a function from feeds (input name -> array) to outputs (output name -> array); returns
            one number, the higher the better. It may have a parameter `part`: it is "validation" where the number
            decides something, and "test" for the last one, which should be of other samples.
    """

    name: str
    function: Callable[..., float]

    @property
    def has_parts(self) -> bool:
        """Whether it tells samples that decide from those that only judge in the end."""
        try:
            return "part" in inspect.signature(self.function).parameters
        except ValueError:  # something built in
            return False


def load_metric(where: str) -> Metric:
    """Import "MODULE:FUNCTION" or "FILE.py:FUNCTION".

    Raises:
        OptionError: not of that form, not found, cannot be imported, not a function.
    """
    return Metric(where, load_function(where, "metric"))


def load_function(where: str, what: str) -> Callable[..., Any]:
    """A function of the user's own, by "MODULE:FUNCTION" or "FILE.py:FUNCTION"; `what` it is for, errors say.

    Raises:
        OptionError: not of that form, not found, cannot be imported, not a function.
    """
    source, _, name = where.rpartition(":")
    if not source or not name:
        raise OptionError(f"{what} {where!r}: expected MODULE:FUNCTION or FILE.py:FUNCTION")
    try:
        if source.endswith(".py") or "/" in source:
            path = Path(source)
            if not path.is_file():
                raise OptionError(f"{what} {where}: no such file {path}")
            unique = f"graphopt_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
            spec = importlib.util.spec_from_file_location(unique, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
    except OptionError:
        raise
    except (Exception, SystemExit) as error:
        raise OptionError(f"{what} {where}: cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise OptionError(f"{what} {where}: {source} has no function {name}")
    return function


def fingerprint(where: str) -> str:
    """What tells a metric from the same name with other code: the name, and a hash of the file that it is in, if that is found."""
    function = load_metric(where).function
    file = getattr(importlib.import_module(function.__module__), "__file__", None) if function.__module__ in sys.modules else None
    source = file or (where.rpartition(":")[0] if where.rpartition(":")[0].endswith(".py") else None)
    code = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source is not None and Path(source).is_file() else ""
    return f"{where} {code}"


def relative_loss(before: float, after: float) -> float:
    """What was lost of a metric, relative to what it was; below 0 where something was gained."""
    return (before - after) / abs(before) if before else before - after


def measure_metric(
    metric: Metric, model: str | os.PathLike, *, threads: int = 0, provider: str = "cpu", part: str | None = None
) -> float:  # fmt: skip
    """The metric of a model under the runtime with its optimizations on, as it would be served.

    part: of the metric's samples, where it has parts; None: as the metric has it.

    Raises:
        InputError: the metric raises, or does not return a finite number.
    """
    from graphopt import runtime

    session = runtime.session(model, threads=threads, provider=provider)
    try:
        own = {"part": part} if part is not None and metric.has_parts else {}
        value = float(metric.function(lambda feeds: runtime.run(session, feeds), **own))
    except Exception as error:
        raise InputError(f"metric {metric.name} on {model}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not math.isfinite(value):
        raise InputError(f"metric {metric.name} on {model}: {value} is not a finite number")
    return value
