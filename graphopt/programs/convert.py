"""From ONNX to a program of torch: imported, exported with the model's symbolic dims, verified, written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import GraphoptError, InputError, OptionError
from graphopt.extras import require_torch
from graphopt.importing import to_torch
from graphopt.programs.capture import capture
from graphopt.programs.captured import Captured
from graphopt.programs.fixing import deciding_inputs, fix_inputs, having, told
from graphopt.verification import Sample, Verification, verify
from graphopt.verification.original import Original
from graphopt.verification.samples import fed_inputs

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from graphopt.model import Model

#: Verdicts that say that the program computes what the model computes.
SAME = ("identical", "equivalent")


@dataclass
class Converted:
    """A program made of an ONNX model, and what verification says of it.

    ``fixed`` holds, for each symbolic dim of the model that the program has at one size only, that size; ``values`` the
    inputs of the model that the program does not take, and what they are fixed at; ``tensors`` the name in the module of
    each constant of the model that is a parameter or a buffer.
    """

    captured: Captured
    module: torch.fx.GraphModule
    fixed: dict[str, int] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    verification: Verification | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def tensors(self) -> dict[str, str]:
        names = self.module.meta["onnx"]["tensors"]
        return {k: v for k, v in names.items() if v in self.captured.program.state_dict} if self.values else names

    @property
    def same(self) -> bool:
        return self.verification is not None and self.verification.verdict in SAME


class _Runs:
    """A module on arrays by the names of the ONNX model, as verification runs it."""

    def __init__(self, module: torch.nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.module, self.inputs, self.output_names = module, list(inputs), list(outputs)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Raises GraphoptError where the module does not run on them."""
        import torch

        try:
            with torch.no_grad():
                found = self.module(*(tensor(feeds[name]) for name in self.inputs))
        except Exception as error:  # torch raises many kinds
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise GraphoptError(f"{type(error).__name__}: {first[:300]}") from error
        return dict(zip(self.output_names, map(array, found if isinstance(found, tuple) else (found,)), strict=True))


def runs(imported: torch.fx.GraphModule, module: torch.nn.Module | None = None) -> _Runs:
    """What was imported, or a module that was made of it, as something that verification runs."""
    names = imported.meta["onnx"]
    return _Runs(module if module is not None else imported, names["inputs"], names["outputs"])


def tensor(value: Any) -> Any:
    """An array, or a list of them, as tensors of their own."""
    from graphopt.aten.arrays import to_tensor

    return [tensor(v) for v in value] if isinstance(value, list) else to_tensor(np.array(value))


def array(value: Any) -> Any:
    """A tensor, or a list of them, as arrays."""
    from graphopt.aten.arrays import to_array

    return [array(v) for v in value] if isinstance(value, list) else to_array(value.detach())


def convert(
    model: Model,
    reference: Original,
    samples: Sequence[Sample],
    *,
    tolerance: float | None = None,
    values: Mapping[str, np.ndarray] | None = None,
) -> Converted:
    """Import and export a model, and compare the program with the reference on the samples.

    model: as loaded; reference: of the same model; samples: on which the reference runs, at two sizes of each dynamic
    dim where there are any; values: inputs that the program is not to take, and what they are fixed at.

    Where torch exports a model only with the inputs fixed that alone decide which branches it takes, they are fixed at
    what they are in the first sample, and a note says so.

    Raises:
        InputError: torch is missing, an operator cannot be imported, or torch cannot export what was imported; or no
            sample has the values.
    """
    require_torch("programs of torch")
    values = dict(values or {})
    try:
        return _converted(model, reference, samples, values, tolerance)
    except _NoProgramError:
        deciding = [name for name in deciding_inputs(model) if name not in values]
        if not deciding or len(deciding) + len(values) == len(fed_inputs(model.graph)):
            raise
        chosen = {name: np.asarray(samples[0].feeds[name]) for name in deciding}
        try:
            found = _converted(model, reference, samples, {**values, **chosen}, tolerance)
        except InputError:
            found = None
        if found is None:
            raise
    for name, value in chosen.items():
        found.notes.append(
            f"input '{name}' is fixed at {told(value)}, and the program does not take it: what the model does at other values needs "
            f"other sizes, which torch cannot state in one program; --fix {name}=VALUE makes one of another value"
        )
    return found


class _NoProgramError(InputError):
    """torch cannot export what was imported."""


def _converted(
    model: Model, reference: Original, samples: Sequence[Sample], values: dict[str, np.ndarray], tolerance: float | None
) -> Converted:
    what = str(model.path or "the model")
    if values:
        model, samples = fix_inputs(model, values), having(samples, values)
    module = to_torch(model)
    names = module.meta["onnx"]
    dims = _moving(symbolic_dims(model), samples)
    example = _example(samples, dims)
    if any(isinstance(value, list) for value in example.feeds.values()):
        raise InputError(f"{what}: takes a sequence of tensors, which a program of torch does not: use graphopt.to_torch")
    found: Converted | None = None
    failure: InputError | None = None
    for aside in (contextlib.nullcontext, _without_ones):
        try:
            with aside():
                captured = _captured(module, names, example, dims, what)
        except InputError as error:
            failure = failure or error
            continue
        if values:
            captured = captured.replaced(_used(captured.program))
        blank = Converted(captured, module, values=values, notes=list(captured.notes))
        made = _verified(blank, reference, samples, example, dims, tolerance)
        found = made if found is None or made.same else found
        if found.same:
            break
    if found is None:
        why = str(failure).removeprefix("ImportedModel: ")
        said = f"{what}: is imported, but no program can be made of it: {why}; graphopt.to_torch gives the module"
        raise _NoProgramError(said) from failure
    return found


def _used(program: ExportedProgram) -> ExportedProgram:
    """The program without the tensors of branches that it does not take."""
    from graphopt.aten import Program

    free = Program(program)
    for node in [n for n in free.specs if not n.users]:
        free.drop_constant(node)
    return free.export()


def _verified(
    result: Converted,
    reference: Original,
    samples: Sequence[Sample],
    example: Sample,
    dims: Mapping[str, Mapping[int, str]],
    tolerance: float | None,
) -> Converted:
    names = result.module.meta["onnx"]
    kept = _kept(result.captured, names)
    for name, axes in dims.items():
        for axis, dim in axes.items():
            if axis not in kept.get(name, ()):
                result.fixed.setdefault(dim, int(np.shape(example.feeds[name])[axis]))
    fitting = [s for s in samples if _fits(s, example, dims, kept)]
    if len(fitting) < len(samples):
        result.notes.append(f"{len(samples) - len(fitting)} of {len(samples)} samples are of sizes that the program does not take")
    program = runs(result.module, result.captured.program.module())
    result.verification = verify(None, program, fitting, tolerance=tolerance, reference=reference, coverage=False)
    return result


def symbolic_dims(model: Model) -> dict[str, dict[int, str]]:
    """The dims of the inputs that are no numbers: input -> {axis: name}. One without a name gets one of its own."""
    found: dict[str, dict[int, str]] = {}
    for value in model.graph.graph.inputs:
        if value.name in model.graph.graph.initializers or value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            if not isinstance(dim, int):
                named = dim.value if dim.value not in (None, "", "?") else None
                found.setdefault(value.name, {})[axis] = named or f"{value.name}_{axis}"
    return found


def _moving(dims: dict[str, dict[int, str]], samples: Sequence[Sample]) -> dict[str, dict[int, str]]:
    """The same, and the axes that the model states as a number and yet runs at others: declarations can be wrong."""
    for sample in samples[1:]:
        for name, shape in sample.shapes().items():
            first = samples[0].shapes().get(name)
            for axis, (a, b) in enumerate(zip(shape, first or (), strict=False)):
                if a != b:
                    dims.setdefault(name, {}).setdefault(axis, f"{name}_{axis}")
    return dims


def _example(samples: Sequence[Sample], dims: Mapping[str, Mapping[int, str]]) -> Sample:
    """A sample to trace with. torch makes constants of sizes 0 and 1, so one without them where there is one."""
    if not samples:
        raise InputError("there is no sample to trace the model with")

    def ones(sample: Sample) -> int:
        return sum(np.shape(sample.feeds[name])[axis] < 2 for name, axes in dims.items() for axis in axes)

    return min(samples, key=ones)


def _captured(
    module: torch.fx.GraphModule, names: Mapping[str, Any], example: Sample, dims: Mapping[str, Mapping[int, str]], what: str
) -> Captured:
    """The program with the dims dynamic that can be: all, else those that torch does not fix, else none."""
    import torch

    arguments = _arguments(module, names)
    inputs = tuple(tensor(example.feeds[name]) for name in names["inputs"])

    def attempt(wanted: Mapping[str, Mapping[int, Any]]) -> Captured:
        shapes = {arguments[name]: dict(axes) for name, axes in wanted.items()}
        return capture(module, inputs, dynamic_shapes=shapes, outputs=_outputs(names))

    if not dims:
        return attempt({})
    try:
        return attempt(dims)
    except (InputError, OptionError):
        pass
    try:
        found = attempt({name: dict.fromkeys(axes, torch.export.Dim.AUTO) for name, axes in dims.items()})
    except (InputError, OptionError):
        return attempt({})
    kept = _kept(found, names)
    try:
        return attempt({name: {a: d for a, d in axes.items() if a in kept.get(name, ())} for name, axes in dims.items()})
    except (InputError, OptionError):
        return found


def _without_ones() -> contextlib.AbstractContextManager[None]:
    """Inside, torch takes no side on whether a symbolic size is 1, which some of its operators ask of it.

    That is what makes a program hold at more sizes, of some models; of others it is what makes it hold at fewer.
    """
    import torch.fx.experimental._config as config

    return config.patch(backed_size_oblivious=True)


def _arguments(module: torch.fx.GraphModule, names: Mapping[str, Any]) -> dict[str, str]:
    """Inputs of the model -> arguments of `forward`."""
    placeholders = [node.target for node in module.graph.nodes if node.op == "placeholder"]
    return dict(zip(names["inputs"], placeholders, strict=True))


def _outputs(names: Mapping[str, Any]) -> list[str] | None:
    """Names for the outputs, unless an input has one of them as well."""
    outputs = names["outputs"]
    return outputs if len({*outputs, *names["inputs"]}) == len(outputs) + len(names["inputs"]) else None


def _kept(captured: Captured, names: Mapping[str, Any]) -> dict[str, set[int]]:
    """The axes of the inputs of the model that are dynamic in the program."""
    return {name: set(captured.dims.get(argument, ())) for name, argument in zip(names["inputs"], captured.inputs, strict=True)}


def _fits(sample: Sample, example: Sample, dims: Mapping[str, Mapping[int, str]], kept: Mapping[str, set[int]]) -> bool:
    return all(
        np.shape(sample.feeds[name])[axis] == np.shape(example.feeds[name])[axis]
        for name, axes in dims.items()
        for axis in axes
        if axis not in kept.get(name, ())
    )
