"""Capture: whatever a user hands in becomes a functional program of torch, and what is known of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import InputError, OptionError
from graphopt.extras import require_torch
from graphopt.programs.captured import Captured
from graphopt.programs.sources import Source, arguments_of, is_factory, open_source
from graphopt.programs.torch_side import in_eval_mode

if TYPE_CHECKING:
    from graphopt.programs.arguments import Arguments
    from graphopt.programs.dynamic import Found

__all__ = ["Captured", "capture", "is_factory"]


def capture(
    source: Any,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    eval: bool = False,
    outputs: Sequence[str] | None = None,
) -> Captured:
    """Capture a module or a program.

    `source` is a `torch.nn.Module`, a `torch.fx.GraphModule`, a `torch.export.ExportedProgram`, a path to a `.pt2`, or
    "package.module:factory" or "file.py:factory": a function that returns (module, example_inputs) or (module,
    example_inputs, dynamic_shapes). Example inputs are a tuple, a dict by argument, or one tensor; a program brings its
    own. `dynamic_shapes` is torch's, or `{"image": {0: "batch"}}`; without it the dynamic dims are found by trying.
    A module in training mode is refused unless `eval` asks for it to be captured as if it were not; its mode is kept.
    `outputs` names the outputs.

    Raises:
        InputError: the source, or its inputs, are at fault; where `torch.export` fails, at which line and what helps.
        OptionError: `dynamic_shapes` does not fit.
    """
    require_torch()
    from graphopt.programs.agreement import check_runs, check_same
    from graphopt.programs.arguments import Arguments
    from graphopt.programs.dynamic import Found
    from graphopt.programs.training import refuse_training, training_module

    opened = open_source(source, example_inputs, dynamic_shapes)
    args, kwargs = arguments_of(opened.inputs, opened)
    notes: list[str] = []
    if opened.program is not None:
        if opened.shapes is not None:
            raise OptionError(f"{opened.what}: its dynamic dims were fixed when it was exported: leave dynamic shapes out")
        refuse_training(opened.program, opened.what)
        found, names = Found(opened.program), {}
        reference, eager = opened.program.module(), False
        arguments = Arguments.of(args, kwargs)
        check_runs(reference, arguments, opened.what)
    else:
        assert opened.module is not None
        part = training_module(opened.module)
        if part is not None and not eval:
            called = f"its part '{part}'" if part else "the module"
            raise InputError(f"{opened.what}: {called} is in training mode: call .eval() on the module, or ask for it with eval=True")
        if part is not None:
            notes.append("captured as in eval mode, though the module is in training mode")
        arguments = Arguments.of(args, kwargs)
        with in_eval_mode(opened.module):
            expected, changed = check_runs(opened.module, arguments, opened.what)
            found, names = _exported(opened, arguments)
            refuse_training(found.program, opened.what)
            check_same(opened.module, found.program, arguments, expected, opened.what)
        if changed:
            notes.append(f"forward changes {', '.join(repr(name) for name in changed)} of the module, which the program does not")
        reference, eager = opened.module, True
    return _described(opened, found, names, arguments, reference, eager, notes, outputs)


def _exported(opened: Source, arguments: Arguments) -> tuple[Found, dict[tuple[int, int], str]]:
    """The module as a program, and the names that the user gave to dims."""
    from graphopt.programs.dynamic import Found, find, spec_of
    from graphopt.programs.failures import explain
    from graphopt.programs.shapes import stated, traced_at
    from graphopt.programs.tracing import ExportError, export_either_way

    module = opened.module
    try:
        if opened.shapes is None:
            return find(module, arguments), {}
        wanted, names = stated(opened.shapes, module, arguments, opened.what)
        traced = traced_at(arguments, wanted, names)
        return Found(export_either_way(module, *traced.structured(), spec_of(traced, wanted) if wanted else None)), names
    except ExportError as error:
        raise InputError(explain(error.__cause__ or error, opened.what)) from error


def _described(
    opened: Source, found: Found, given: Mapping[tuple[int, int], str], arguments: Arguments, reference: Any, eager: bool,
    notes: list[str], outputs: Sequence[str] | None,
) -> Captured:  # fmt: skip
    from graphopt.programs.failures import explain
    from graphopt.programs.naming import kept_names, name_dims, name_outputs
    from graphopt.programs.tracing import ExportError, functional, tensor_inputs

    try:
        program = functional(found.program)
    except ExportError as error:
        raise InputError(explain(error.__cause__ or error, opened.what)) from error
    nodes = tensor_inputs(program)
    inputs = tuple(node.name for node in nodes)
    dims, lowest, kept = kept_names(opened.names, program)
    dims |= {(inputs[which], axis): name for (which, axis), name in given.items()}
    named = name_dims(program, dims, lowest | found.lowest)
    args, kwargs = arguments.structured()
    return Captured(
        program=program,
        reference=reference,
        is_eager=eager,
        args=args,
        kwargs=kwargs,
        inputs=inputs,
        outputs=name_outputs(program, inputs, outputs if outputs is not None else kept, opened.what),
        dims=named.dims,
        ranges=named.ranges,
        worked={named.symbols[symbol]: tuple(sorted(sizes)) for symbol, sizes in found.worked.items() if symbol in named.symbols},
        symbols=named.symbols,
        notes=(
            *notes,
            *found.notes,
            *named.notes,
            *(f"axis {axis} of '{name}' is fixed: {why}" for (name, axis), why in found.fixed.items()),
        ),
        name=opened.name,
        source=opened.what,
    )
