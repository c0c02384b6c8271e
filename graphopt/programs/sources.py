"""What a user may hand in, made into a module or a program, example inputs and dynamic shapes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, InputError
from graphopt.programs.failures import line_of_error

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Source:
    """One of `module` and `program`; `what` names it in messages, `name` in files; `names` is what was kept with a program."""

    what: str
    name: str
    module: torch.nn.Module | None = None
    program: ExportedProgram | None = None
    inputs: Any = None
    shapes: Any = None
    names: str = ""


def is_factory(source: str | os.PathLike[str]) -> bool:
    """Whether a string is "package.module:factory" or "file.py:factory"."""
    text = os.fspath(source)
    place, colon, name = text.rpartition(":")
    return bool(
        colon and place and name.isidentifier() and (place.endswith(".py") or all(part.isidentifier() for part in place.split(".")))
    )


def is_program(model: Path | str) -> bool:
    """Whether a run on `model` is one on a torch program: a `.pt2`, or "module:factory" (a file of that name is a file)."""
    path = Path(model)
    return path.suffix.lower() == ".pt2" or (is_factory(model) and not path.exists())


def default_destination(model: Path, *, in_place: bool = False) -> Path:
    """Where the result goes unless it is said: `model.opt.pt2` beside `model.pt2`, `factory.opt.onnx` in the current folder."""
    if model.suffix.lower() == ".pt2":
        return model if in_place else model.with_name(f"{model.stem}.opt.pt2")
    return Path(f"{str(model).rpartition(':')[2]}.opt.onnx")


def open_source(source: Any, inputs: Any, shapes: Any) -> Source:
    """What `source` stands for.

    Raises:
        InputError: nothing that torch could be given comes of it.
    """
    import torch
    from torch.export import ExportedProgram

    if isinstance(source, str | os.PathLike):
        if is_factory(source):
            return _from_factory(os.fspath(source), inputs, shapes)
        from graphopt.programs.archives import load_program

        path = Path(source)
        program, names = load_program(path)
        return Source(str(path), path.stem, program=program, inputs=inputs, shapes=shapes, names=names)
    if isinstance(source, ExportedProgram):
        return Source("the exported program", "program", program=source, inputs=inputs, shapes=shapes)
    if isinstance(source, torch.jit.ScriptModule):
        raise InputError(f"{_called(source)}: is a TorchScript module, which cannot be exported: give the module that it was made from")
    while isinstance(source, _wrappers()):
        source = source._orig_mod if hasattr(source, "_orig_mod") else source.module
    if isinstance(source, torch.nn.Module):
        return Source(_called(source), _called(source), module=source, inputs=inputs, shapes=shapes)
    if callable(source) and not isinstance(source, type):
        raise InputError(f"{_called(source)}: is a function, not a module: wrap it in a torch.nn.Module with it as forward")
    if isinstance(source, type) and issubclass(source, torch.nn.Module):
        raise InputError(f"{source.__name__}: is a class, not a module: make one of it, {source.__name__}(...)")
    raise InputError(f"a {type(source).__name__} is neither a module nor a program, nor a path to one")


def _wrappers() -> tuple[type, ...]:
    """Modules that only run another one: compiled, or on several devices."""
    import torch
    from torch._dynamo.eval_frame import OptimizedModule

    return OptimizedModule, torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel


def _called(thing: Any) -> str:
    name = getattr(thing, "original_name", None) or getattr(thing, "__name__", None) or type(thing).__name__
    return "GraphModule" if name == "GraphModuleImpl" else str(name)


def _from_factory(text: str, inputs: Any, shapes: Any) -> Source:
    import torch

    place, _, name = text.rpartition(":")
    module = _imported(place, text)
    factory = getattr(module, name, None)
    if factory is None:
        raise InputError(f"{text}: {place} has no '{name}'")
    if not callable(factory):
        raise InputError(f"{text}: '{name}' is a {type(factory).__name__}, not a function that returns a module and example inputs")
    try:
        made = factory()
    except GraphoptError:
        raise
    except Exception as error:
        raise InputError(f"{text}: {_failed(error)}") from error
    if isinstance(made, torch.nn.Module):
        made = (made,)
    if not isinstance(made, tuple) or not 1 <= len(made) <= 3 or not isinstance(made[0], torch.nn.Module):
        raise InputError(
            f"{text}: returned {_described(made)}; expected (module, example_inputs) or (module, example_inputs, dynamic_shapes)"
        )
    own_inputs, own_shapes = (*made[1:], None, None)[:2]
    opened = open_source(made[0], None, None)
    return Source(
        text, name, module=opened.module, inputs=own_inputs if inputs is None else inputs, shapes=own_shapes if shapes is None else shapes
    )


def _described(made: Any) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(part).__name__ for part in made)})"
    return f"a {type(made).__name__}"


def _imported(place: str, text: str) -> Any:
    try:
        if not place.endswith(".py"):
            if os.getcwd() not in sys.path:  # as `python -m` has it: a package beside the user is found
                sys.path.insert(0, os.getcwd())
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise InputError(f"{text}: there is no file {place}")
        spec = importlib.util.spec_from_file_location(f"graphopt_factory_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickling look a class's module up there
        spec.loader.exec_module(module)
        return module
    except GraphoptError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise InputError(f"{text}: there is no module '{error.name}'") from None
        raise InputError(f"{text}: cannot be imported: {_failed(error)}") from error
    except Exception as error:
        raise InputError(f"{text}: cannot be imported: {_failed(error)}") from error


def _failed(error: BaseException) -> str:
    place = line_of_error(error)
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}" + (f": {first}" if first else "") + (f", at {place}" if place is not None else "")


def arguments_of(inputs: Any, source: Source) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments and arguments by name, in the order of `forward`.

    `inputs` is a tuple (or list) of the positional ones, a mapping by name, or a single tensor.

    Raises:
        InputError: there are none, or they do not fit the arguments of `forward`.
    """
    import torch

    if inputs is None:
        if source.program is not None:
            from graphopt.programs.tracing import inputs_of

            return inputs_of(source.program)
        raise InputError(f"{source.what}: needs example inputs: a tuple in the order of forward's arguments, a dict by name, or one tensor")
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    elif isinstance(inputs, tuple | list):
        args, kwargs = tuple(inputs), {}
        if len(args) == 2 and isinstance(args[0], tuple) and isinstance(args[1], dict) and all(isinstance(key, str) for key in args[1]):
            args, kwargs = args  # torch's own way to say both
    else:
        raise InputError(f"{source.what}: example inputs of type {type(inputs).__name__}: expected a tuple, a dict by name, or one tensor")
    if source.module is None:
        return args, kwargs
    try:
        signature = inspect.signature(source.module.forward)
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{source.what}: the example inputs do not fit forward{signature}: {error}") from None
    except ValueError:  # a forward without a signature: torch will tell
        return args, kwargs
    return bound.args[: len(args)], {name: kwargs[name] for name in _order(signature, kwargs)}


def _order(signature: inspect.Signature, kwargs: Mapping[str, Any]) -> list[str]:
    known = [name for name in signature.parameters if name in kwargs]
    return known + [name for name in kwargs if name not in known]
