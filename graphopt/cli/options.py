"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from graphopt import budget as budgets
from graphopt.errors import InputError, OptionError

_PIPELINE, _TARGET, _CHECK, _OUTPUT = "The pipeline", "The target", "Verification", "Output"

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX model.", show_default=False)]
AnyModel = Annotated[
    Path, typer.Argument(metavar="MODEL", help="An ONNX model, a .pt2, or MODULE:FACTORY of a torch module.", show_default=False)
]
Preset = Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="The pipeline to run.", rich_help_panel=_PIPELINE)]
Passes = Annotated[
    str | None, typer.Option(metavar="A,B", help="Passes to run instead of a preset's, in this order.", rich_help_panel=_PIPELINE)
]
Skip = Annotated[list[str] | None, typer.Option(metavar="A,B", help="Passes to leave out.", rich_help_panel=_PIPELINE)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Set an option of a pass; repeatable.", rich_help_panel=_PIPELINE),
]
Plugin = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE.py|MODULE", help="Load further passes from here; repeatable.", rich_help_panel=_PIPELINE),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(metavar="INPUT=1,3,224,224", help="The dimensions of an input; repeatable.", rich_help_panel=_TARGET),
]
FixInitializers = Annotated[
    bool, typer.Option("--fix-initializers", help="Treat initializers that a caller may override as constants.", rich_help_panel=_PIPELINE)
]
Provider = Annotated[str, typer.Option(metavar="cpu|cuda|NAME", help="Execution provider of ONNX Runtime.", rich_help_panel=_TARGET)]
Threads = Annotated[
    int, typer.Option(min=0, max=1024, metavar="N", help="Threads of the runtime; 0: every usable core.", rich_help_panel=_TARGET)
]
Samples = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz|DIR", help="Inputs to verify and time on; synthesized without it.", rich_help_panel=_CHECK),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|DIR|MODULE:FUNCTION",
        help="Inputs for passes that calibrate: .npz, .npy, images, or a function that gives them.",
        rich_help_panel=_PIPELINE,
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.toml|KEY=VALUE;..", help="What makes an input of an image of --calibration.", rich_help_panel=_PIPELINE
    ),
]
Tolerance = Annotated[
    float | None, typer.Option(min=0, metavar="X", help="Relative tolerance of float outputs.", rich_help_panel=_CHECK)
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="X|X%|XdB|cos:X",
        help="Loss accepted of a lossy result: 0.01 or 1% of the metric or the outputs, a signal-to-noise ratio of the outputs as 30dB, "
        "a cosine as cos:0.99.",
        rich_help_panel=_CHECK,
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of synthesized inputs.", rich_help_panel=_CHECK)]
Reports = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE.json|FILE.html", help="Write the report to a file too; repeatable.", rich_help_panel=_OUTPUT),
]
InPlace = Annotated[bool, typer.Option("--in-place", help="Allow that MODEL itself is replaced.", rich_help_panel=_OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.", rich_help_panel=_OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no report; only errors.", rich_help_panel=_OUTPUT)]


def names_of(texts: str | Sequence[str], option: str) -> tuple[str, ...]:
    """The names in "a,b", or in several such texts."""
    found = [n.strip() for text in ([texts] if isinstance(texts, str) else texts) for n in text.split(",")]
    if not found or not all(found):
        raise OptionError(f"{option}: expected names separated by commas, as in A,B")
    return tuple(found)


def settings_of(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """PASS.OPTION=VALUE, each, by pass."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot and name and option):
            raise OptionError(f"--set {text}: expected PASS.OPTION=VALUE")
        found.setdefault(name.strip(), {})[option.strip()] = value
    return found


def shapes_of(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """INPUT=1,3,224,224, each, by input."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, dims = text.rpartition("=")  # names of inputs may hold anything, even "="
        if not equals or not name:
            raise OptionError(f"--shape {text}: expected INPUT=1,3,224,224")
        if name in found:
            raise OptionError(f"--shape {text}: input {name!r} was given a shape already")
        try:
            found[name] = tuple(int(d) for d in dims.split(","))
        except ValueError:
            raise OptionError(f"--shape {text}: dimensions are whole numbers separated by commas") from None
        if any(not 1 <= d < 2**31 for d in found[name]):
            raise OptionError(f"--shape {text}: a dimension must be a whole number above 0")
    return found


def values_of(texts: Sequence[str]) -> dict[str, str]:
    """INPUT=VALUE, each, by input."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name or not value.strip():
            raise OptionError(f"--fix {text}: expected INPUT=VALUE, as in sr=16000")
        if name in found:
            raise OptionError(f"--fix {text}: input {name!r} was given a value already")
        found[name] = value
    return found


def finite(value: float | None, option: str) -> float | None:
    """The number, unless it is one that compares with nothing."""
    if value is not None and not math.isfinite(value):
        raise OptionError(f"{option}: {value} is not a finite number")
    return value


def budget_of(text: str | None) -> budgets.Budget | None:
    """What --budget says."""
    return None if text is None else budgets.Budget.of(text, "--budget")


def onnx_only(path: Path, command: str) -> None:
    """Raises InputError where a command that works on ONNX models alone is given a torch program."""
    from graphopt.programs.sources import is_program

    if is_program(path):
        raise InputError(f"{path}: is a torch program, and {command} works on ONNX models: graphopt export {path} -o OUT.onnx writes one")


def existing(path: Path | None, what: str) -> None:
    """Raises InputError where `path` was given and is not there."""
    if path is not None and not path.exists():
        raise InputError(f"{path}: no such {what}")
