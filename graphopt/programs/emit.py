"""Out of torch's programs: an ONNX model or a `.pt2` file; `module.py` has the third way, a module to call."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.errors import InputError, OptionError, OutputError
from graphopt.extras import require_torch
from graphopt.formats import save_model
from graphopt.model import Model, iter_graphs
from graphopt.programs.captured import Captured
from graphopt.programs.naming import NAMES, names_of, renamed
from graphopt.programs.onnx_ready import ready
from graphopt.programs.torch_side import forget_dispatch, quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: The opset of a model that is to be run: every operator of torch that has an ONNX one by then, and every runtime knows it.
OPSET = 20


def to_onnx(
    program: ExportedProgram, captured: Captured, path: os.PathLike[str] | str | None = None, *, opset: int = OPSET, in_place: bool = False
) -> Model:
    """The program as an ONNX model; written to `path` too where one is given.

    Inputs are named as the arguments of `forward`, outputs and dynamic dims as `captured` has them, and initializers
    as the state dict. Functions are inlined.

    Raises:
        InputError: an operator has no ONNX translation, or an output depends on a buffer that the program changes.
        OutputError: the file cannot be written.
    """
    require_torch()
    import torch

    program, notes = ready(program, captured.source)
    forget_dispatch()
    try:
        with torch.no_grad(), quiet():
            exported = torch.onnx.export(program, (), dynamo=True, optimize=False, verbose=False, opset_version=opset)
    except Exception as error:  # the exporter raises its own kinds, each with a page of report
        raise InputError(f"{captured.source}: {_why(error)}") from error
    graph = exported.model
    if graph.opset_imports.get("") != opset:
        found = graph.opset_imports.get("")
        if opset != OPSET:
            raise OptionError(f"{captured.source}: cannot be written in opset {opset}: its operators are those of opset {found}")
    notes += _part_names(graph)
    _name_outputs(graph, captured.outputs)
    _name_dims(graph, captured)
    model = Model.from_ir(graph)
    model.notes += notes
    if path is not None:
        save_model(model, path, in_place=in_place)
    return model


def _why(error: BaseException) -> str:
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    missing = next((str(one) for one in chain if type(one).__name__ == "DispatchError"), None)
    if missing is not None:
        return f"has no ONNX translation: {missing.splitlines()[0]}"
    text = next((line for line in str(chain[-1]).splitlines() if line.strip()), type(chain[-1]).__name__)
    return f"torch.onnx.export failed: {text[:240]}"


def _part_names(model: ir.Model) -> list[str]:
    """Another name for a parameter that is called as an input is, which the exporter lets both have; remarks."""
    graph, notes = model.graph, []
    inputs = {value.name for value in graph.inputs}
    for name in [name for name in graph.initializers if name in inputs]:
        value = graph.initializers.pop(name)
        value.name = next(
            f"{name}_{count}" for count in range(1, len(graph.initializers) + 3) if f"{name}_{count}" not in graph.initializers
        )
        graph.initializers.add(value)
        notes.append(f"the parameter '{name}' is called '{value.name}' in the ONNX model, where '{name}' is an input")
    return notes


def _name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Gives the outputs their names, each a value of its own: an input, a weight or a value that is given twice is copied."""
    graph = model.graph
    taken = {value.name: value for node in graph for value in node.outputs}
    seen: set[ir.Value] = set()
    for place, name in enumerate(names):
        value = graph.outputs[place]
        if value in seen or value.is_graph_input() or value.is_initializer():
            copy = ir.node("Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            value = graph.outputs[place] = copy.outputs[0]
        seen.add(value)
        other = taken.get(name)
        if other is not None and other is not value:
            other.name = next(f"{name}_{count}" for count in range(1, len(taken) + 2) if f"{name}_{count}" not in taken)
            taken[other.name] = other
        value.name = name
        taken[name] = value


def _name_dims(graph: ir.Model, captured: Captured) -> None:
    """Dims under our names, and as numbers where torch found them to be."""
    names = captured.symbols
    for part in iter_graphs(graph):
        values = {*part.inputs, *part.outputs, *(output for node in part for output in node.outputs)}
        for value in values:
            if value.shape is None:
                continue
            for axis, dim in enumerate(value.shape):
                text = getattr(dim, "value", None)
                if not isinstance(text, str):
                    continue
                new: int | str = int(text) if text.isdigit() else renamed(text, names)
                if new != text:
                    value.shape[axis] = new


def to_pt2(
    program: ExportedProgram,
    path: os.PathLike[str] | str,
    captured: Captured | None = None,
    *,
    source: os.PathLike[str] | str | None = None,
    in_place: bool = False,
) -> Path:
    """Write the program as a `.pt2`, beside the target first and then renamed to it; returns the path.

    The names that `captured` has for dims and outputs go into the archive, where `capture` finds them again.

    Raises:
        OutputError: the target is `source`, the file that the program came from (without `in_place`), or cannot be written.
    """
    require_torch()
    import torch

    target = Path(path)
    if source is not None and not in_place and target.exists() and Path(source).exists() and os.path.samefile(target, source):
        raise OutputError(f"{target}: is the input, which is not overwritten")
    if target.is_dir():
        raise OutputError(f"{target}: is a folder")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: there is no folder {target.parent}")
    try:
        handle, made = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".pt2")
        os.close(handle)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}") from None
    try:
        with quiet():
            torch.export.save(program, made, extra_files=None if captured is None else {NAMES: names_of(captured)})
        os.chmod(made, 0o666 & ~_umask())
        os.replace(made, target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from None
    except Exception as error:
        raise OutputError(f"{target}: cannot be written as a .pt2: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
