"""What a run is asked for, and what can be said of it before any work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.budget import METRIC, OUTPUTS, Budget
from graphopt.errors import InputError, OptionError, OutputError
from graphopt.pipeline.presets import Pipeline, build_pipeline, preset_names
from graphopt.pipeline.registry import Registry
from graphopt.runtime import short_name

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.calibration import Calibration, Source
    from graphopt.model import Model
    from graphopt.verification import Reference

VERIFY = ("off", "end", "each")


@dataclass(frozen=True)
class Request:
    """What a run is asked for; the options of `graphopt run`.

    Attributes:
        model: the model's file.
        output: where the result goes; None: `<stem>.opt.onnx` beside the model, or the model itself with `in_place`.
        preset: name or TOML file of the pipeline, unless `passes` lists passes.
        skip: passes to leave out.
        options: by pass, option values.
        plugins: files or modules with further passes.
        provider: execution provider to verify and measure on.
        threads: of the runtime; 0: all usable cores.
        shapes: input -> dimensions to fix.
        samples: `.npz` or folder of them; None: synthesized.
        calibration: what passes that calibrate do so on: a file, a folder, "MODULE:FUNCTION" or "FILE.py:FUNCTION", or a
            `graphopt.calibration.Source`; None: guessed.
        preprocess: what makes an input of an image: options or a TOML file (see `graphopt.calibration.images`).
        verify: "off", "end" (the result), or "each" (after every pass).
        bench: whether speed is measured, and a slower result dropped.
        tune: where speed is measured, whether settings of the session are searched under which the result is faster still.
        tolerance: relative tolerance of float outputs, instead of the one that effect and noise give.
        budget: with lossy passes, the loss of quality that is accepted; a number is a relative loss (see `graphopt.budget`).
        metric: "MODULE:FUNCTION" or "FILE.py:FUNCTION"; called with a function from feeds to outputs.
        journal: where a search for what is within the budget notes what it measured; None: `<output>.search.jsonl`, and only until
            the run is over.
        search_seconds: what such a search may take.
        fix_initializers: treat initializers that a caller may override as constants.
        bake: write the graph that the runtime makes of the result on this target, instead of the result.
        in_place: allow the model's own file to be replaced.
    """

    model: Path
    output: Path | None = None
    preset: str = "default"
    passes: tuple[str, ...] | None = None
    skip: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    provider: str = "cpu"
    threads: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    samples: Path | None = None
    calibration: str | Source | None = None
    preprocess: str | None = None
    verify: str = "end"
    bench: bool = True
    tune: bool = True
    tolerance: float | None = None
    budget: Budget | float | str | None = None
    metric: str | None = None
    journal: Path | None = None
    search_seconds: float = 300.0
    seed: int = 0
    fix_initializers: bool = False
    bake: bool = False
    in_place: bool = False

    @property
    def destination(self) -> Path:
        """The file that the result is written to."""
        if self.output is not None:
            return self.output
        return self.model if self.in_place else self.model.with_name(f"{self.model.stem}.opt.onnx")

    @property
    def accepted(self) -> Budget:
        """The loss of quality that is accepted of a lossy result: as asked for, else 1 % of the metric, or 20 dB at the outputs."""
        if self.budget is None:
            return OUTPUTS if self.metric is None else METRIC
        return Budget.of(self.budget)

    @property
    def metric_judges(self) -> bool:
        """Whether a lossy result is judged by the metric; a budget in decibels or as a cosine is one of the outputs."""
        return self.metric is not None and self.accepted.kind == "loss"


def plan(request: Request) -> tuple[Registry, Pipeline]:
    """The passes that are installed or plugged in, and the pipeline that the request asks for.

    Raises:
        PluginError, OptionError: as the registry and the presets do; a calibration that no pass would use.
    """
    registry = Registry.discover()
    for plugin in request.plugins:
        registry.load_plugin(plugin)
    pipeline = build_pipeline(
        registry,
        preset=request.preset,
        passes=request.passes,
        skip=request.skip,
        options=request.options,
        provider=short_name(request.provider),
        calibrated=request.calibration is not None,
    )
    if request.calibration is not None and not any(step.calibrates for step in pipeline.steps):
        raise OptionError(
            f"calibration {request.calibration}: none of the passes of the pipeline ({pipeline.name}) uses calibration samples"
        )
    return registry, pipeline


def alternatives(request: Request, registry: Registry, pipeline: Pipeline) -> list[Pipeline]:
    """The pipelines that a report compares the result of this one with: of presets that are installed, with the same options.

    One that the request does not fit (it sets an option of a pass that is not among its own) is left out.
    """
    if request.passes is not None:
        return []
    found = []
    for name in pipeline.alternatives:
        if name not in preset_names():
            continue
        try:
            other = build_pipeline(
                registry, preset=name, skip=request.skip, options=request.options, provider=short_name(request.provider),
                calibrated=request.calibration is not None,
            )  # fmt: skip
        except OptionError:
            continue
        found.append(other)
    return found


def load(request: Request) -> Model:
    """The model with the shapes fixed, and the initializers, as the request asks for.

    Raises:
        InputError, OptionError: as the formats do.
    """
    from graphopt.formats import fix_initializers, fix_shapes, load_model

    model = load_model(request.model)
    if request.shapes:
        model.prepare(lambda m: fix_shapes(m, request.shapes))
    if request.fix_initializers:
        model.prepare(fix_initializers)
    return model


def calibration_of(request: Request, model: ir.Model, reference: Reference, **options: Any) -> Calibration:
    """The samples to calibrate on; made up where none are given.

    Raises:
        CalibrationError, OptionError: as the calibration does.
    """
    from graphopt.calibration import Calibration

    options |= {"seed": request.seed, "threads": request.threads, "provider": request.provider}
    if request.calibration is None:
        return Calibration.guess(model, reference.run, shapes=request.shapes or None, **options)
    return Calibration.open(request.calibration, model, preprocessing=request.preprocess, run=reference.run, **options)


def check(request: Request) -> None:
    """Turn down before any work what cannot end well.

    Raises:
        GraphoptError: of the kind that fits.
    """
    from graphopt.metric import load_metric

    check_values(request)
    if request.metric is not None:
        load_metric(request.metric)
    if not request.model.exists():
        raise InputError(f"{request.model}: no such file")
    check_destination(request.destination, request.model, in_place=request.in_place)


def check_values(request: Request) -> None:
    """Turn down values out of range, and a provider that is not there."""
    from graphopt import runtime
    from graphopt.calibration.sources import check_place

    if request.verify not in VERIFY:
        raise OptionError(f"verify must be one of {', '.join(VERIFY)}, not {request.verify!r}")
    if request.threads < 0:
        raise OptionError(f"threads must be 0 (all cores) or more, not {request.threads}")
    if request.tolerance is not None and not request.tolerance >= 0:
        raise OptionError(f"tolerance must be 0 or more, not {request.tolerance}")
    if request.budget is not None:
        Budget.of(request.budget)
    if not request.search_seconds >= 0:
        raise OptionError(f"the seconds of a search must be 0 or more, not {request.search_seconds}")
    if request.journal is not None and (request.journal.is_dir() or not request.journal.parent.is_dir()):
        raise OutputError(f"{request.journal}: no journal can be written there: it is a folder, or in none")
    runtime.resolve_provider(request.provider)
    if request.preprocess is not None and request.calibration is None:
        raise OptionError("a preprocessing is for the images of a calibration, and none is given")
    if isinstance(request.calibration, str):
        check_place(request.calibration)


def check_destination(destination: Path, model: Path, *, in_place: bool) -> None:
    """Turn down a place that the result cannot be written to, or that is the model's own."""
    from graphopt.sessions import check_settings_path

    if not destination.parent.is_dir():
        raise OutputError(f"{destination}: there is no folder {destination.parent}")
    if destination.is_dir():
        raise OutputError(f"{destination}: is a folder")
    check_settings_path(destination)
    if destination.exists() and model.exists() and destination.samefile(model) and not in_place:
        raise OutputError(f"{destination}: is the model itself; --in-place allows that it is replaced")
