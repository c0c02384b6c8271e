"""Pipelines: ordered lists of passes with options; presets are named ones in TOML.

    description = "what it is for"
    alternatives = ["other"]        # presets that a report compares the result with, where they are installed
    rounds = 3                      # passes are run again until nothing changes, at most this often

    [[step]]
    preset = "clean"                # another preset, in its own rounds, before what follows
    skip = ["prune-dead-nodes"]     # passes of it that are left out

    [[step]]
    pass = "fuse-conv-bn"
    options = { max-growth = 0 }
    when = "calibration"            # only where samples to calibrate on are given
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.resources
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphopt.errors import OptionError, PluginError
from graphopt.pipeline.registry import Registry
from graphopt.rewriting.base import Effect, Pass

ENTRY_POINT_GROUP = "graphopt.presets"
DEFAULT_ROUNDS = 1


@dataclass(frozen=True)
class Stage:
    """Passes that are run in turn, again and again until nothing changes, at most `rounds` times."""

    steps: tuple[Pass, ...]
    rounds: int


@dataclass(frozen=True)
class Pipeline:
    """An ordered list of configured passes.

    Attributes:
        name: the preset's name, or "custom".
        stages: the passes in order, each configured; a stage is done with before the next begins.
        description: one line.
        alternatives: names of presets that a report compares the result with; some may not be installed.
    """

    name: str
    stages: tuple[Stage, ...]
    description: str = ""
    alternatives: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, steps: Sequence[Pass], rounds: int = DEFAULT_ROUNDS) -> Pipeline:
        """A pipeline of one stage."""
        return cls(name, (Stage(tuple(steps), rounds),))

    @property
    def steps(self) -> tuple[Pass, ...]:
        """The passes of all stages, in order."""
        return tuple(step for stage in self.stages for step in stage.steps)

    @property
    def rounds(self) -> int:
        """The most rounds of any stage."""
        return max((stage.rounds for stage in self.stages), default=DEFAULT_ROUNDS)

    @property
    def effect(self) -> Effect:
        """The strongest effect of its passes."""
        return max((step.effect for step in self.steps), key=lambda e: e.strength, default=Effect.EXACT)

    def mapped(self, change: Callable[[Pass], Pass | None]) -> Pipeline:
        """The pipeline with each pass changed, or left out where `change` gives None."""
        stages = (replace(s, steps=tuple(new for step in s.steps if (new := change(step)) is not None)) for s in self.stages)
        return replace(self, stages=tuple(stages))

    def of_kind(self, kind: str) -> Pipeline:
        """The pipeline without the passes that do not work on graphs of a kind, "onnx" or "torch"."""
        return self.mapped(lambda step: step if kind in step.kinds else None)


def preset_names() -> list[str]:
    """The names of the presets that are installed."""
    return sorted(_installed())


def load_preset(name: str, registry: Registry, *, calibrated: bool = True) -> Pipeline:
    """The preset of that name, or that in a file if `name` ends in .toml; without steps for calibrated runs if this is none.

    Raises:
        OptionError: no such preset or file, TOML that does not parse, an unknown pass or option, a preset that
            includes itself.
    """
    return _load(name, registry, (), calibrated)


def build_pipeline(
    registry: Registry,
    *,
    preset: str = "default",
    passes: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    provider: str = "cpu",
    calibrated: bool = True,
) -> Pipeline:
    """The pipeline that a command line asks for.

    Args:
        registry: the passes.
        preset: name or TOML file; used unless `passes` is given.
        passes: names in order, run to a fixpoint once.
        skip: names to leave out; each must be a pass that exists.
        options: by pass name, option values over those of the preset.
        provider: short name of the execution provider; passes of a preset that do not pay there are left out.
        calibrated: whether samples to calibrate on are given; steps of a preset that are for such runs alone are left out.

    Raises:
        OptionError: anything unknown, or options for a pass that the pipeline does not run.
    """
    if passes is None:
        pipeline = load_preset(preset, registry, calibrated=calibrated)
    else:
        pipeline = Pipeline.of("custom", [registry.get(n)() for n in passes])
    for name in skip:
        registry.get(name)
    for name, values in (options or {}).items():
        registry.get(name).configure(values)

    def chosen(step: Pass) -> Pass | None:
        if step.name in skip or (passes is None and step.providers and provider not in step.providers):
            return None
        values = (options or {}).get(step.name)
        return step if values is None else step.configure({**_values(step), **values})

    pipeline = pipeline.mapped(chosen)
    for name in options or {}:
        if all(step.name != name for step in pipeline.steps):
            raise OptionError(f"options are given for pass {name!r}, which the pipeline ({pipeline.name}) does not run")
    return pipeline


def _values(step: Pass) -> dict[str, Any]:
    return {o.name: getattr(step, o.name.replace("-", "_")) for o in step.options()}


def _installed() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for point in sorted(set(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)), key=lambda p: (p.name != "builtin", p.name)):
        try:
            folder = importlib.resources.files(point.value)
            files = [f for f in folder.iterdir() if f.name.endswith(".toml")]
        except Exception as error:
            raise PluginError(f"presets of {point.name} cannot be read: {error}") from error
        for file in files:
            name = file.name.removesuffix(".toml")
            if name in found:
                raise PluginError(f"two presets are called {name!r}: {found[name]} and {file}")
            found[name] = file
    return found


def _load(name: str, registry: Registry, including: tuple[str, ...], calibrated: bool) -> Pipeline:
    if name in including:
        raise OptionError(f"preset {name} includes itself: {' -> '.join((*including, name))}")
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise OptionError(f"preset {name}: no such file")
        source: Any = path
    else:
        installed = _installed()
        if name not in installed:
            near = difflib.get_close_matches(name, installed, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(installed))}"
            raise OptionError(f"unknown preset {name!r}; {hint}")
        source = installed[name]
    try:
        data = tomllib.loads(source.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"preset {name}: not valid TOML: {error}") from None
    except OSError as error:
        raise OptionError(f"preset {name}: cannot be read: {error.strerror}") from None
    return _from_toml(name, data, registry, (*including, name), calibrated)


def _from_toml(name: str, data: Mapping[str, Any], registry: Registry, including: tuple[str, ...], calibrated: bool) -> Pipeline:
    unknown = sorted(set(data) - {"description", "alternatives", "rounds", "step"})
    if unknown:
        raise OptionError(f"preset {name}: unknown key {unknown[0]!r} (known: description, alternatives, rounds, step)")
    rounds = data.get("rounds", DEFAULT_ROUNDS)
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 1 <= rounds <= 10:
        raise OptionError(f"preset {name}: rounds must be a whole number from 1 to 10, not {rounds!r}")
    alternatives = data.get("alternatives", [])
    if not isinstance(alternatives, list) or not all(isinstance(a, str) for a in alternatives):
        raise OptionError(f"preset {name}: alternatives is a list of names of presets")
    given = data.get("step", [])
    if not isinstance(given, list) or not all(isinstance(s, dict) for s in given):
        raise OptionError(f"preset {name}: steps are written as [[step]] tables")
    stages: list[Stage] = []
    steps: list[Pass] = []
    for number, step in enumerate(given, 1):
        where = f"preset {name}, step {number}"
        extra = sorted(set(step) - {"pass", "preset", "options", "skip", "when"})
        if extra:
            raise OptionError(f"{where}: unknown key {extra[0]!r} (known: pass, preset, options, skip, when)")
        if step.get("when", "calibration") != "calibration":
            raise OptionError(f"{where}: when is \"calibration\" or not there, not {step['when']!r}")
        if ("pass" in step) == ("preset" in step):
            raise OptionError(f"{where}: needs either pass = \"...\" or preset = \"...\"")
        try:
            if "preset" in step:
                if "options" in step:
                    raise OptionError("options belong to a pass")
                stages += [Stage(tuple(steps), rounds)] if steps else []
                steps = []
                inner = _without(_load(str(step["preset"]), registry, including, calibrated), step.get("skip", []))
                stages += inner.stages if calibrated or "when" not in step else []
            else:
                if "skip" in step:
                    raise OptionError("skip belongs to a preset")
                configured = registry.get(str(step["pass"])).configure(step.get("options"))
                steps += [configured] if calibrated or "when" not in step else []
        except OptionError as error:
            raise OptionError(f"{where}: {error}") from None
    stages += [Stage(tuple(steps), rounds)] if steps else []
    if not stages:
        raise OptionError(f"preset {name}: has no steps")
    return Pipeline(Path(name).stem, tuple(stages), str(data.get("description", "")), tuple(alternatives))


def _without(pipeline: Pipeline, names: Any) -> Pipeline:
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise OptionError("skip is a list of names of passes")
    for name in names:
        if all(step.name != name for step in pipeline.steps):
            raise OptionError(f"skip names {name!r}, which preset {pipeline.name} does not run")
    return pipeline.mapped(lambda step: None if step.name in names else step)
