"""Dynamic shapes as a user states them, made into what torch takes: torch's own forms, or `{"image": {0: "batch"}}`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from graphopt.errors import OptionError
from graphopt.programs.arguments import Arguments


def stated(shapes: Any, module: Any, arguments: Arguments, what: str) -> tuple[dict[tuple[int, int], Any], dict[tuple[int, int], str]]:
    """The dims asked for, by (which tensor, axis): what torch is given for each, and the name it was given by the user.

    A dim that is stated as a string is any size that the module can take; two of one name are one dim. torch's own
    `Dim("batch", min=1, max=8)` holds as it stands.

    Raises:
        OptionError: an argument, an axis or a dim that there is not.
    """
    import torch

    wanted: dict[tuple[int, int], Any] = {}
    names: dict[tuple[int, int], str] = {}
    trees = _trees(module, arguments, what)
    if isinstance(shapes, Mapping):
        unknown = [name for name in shapes if name not in trees]
        if unknown:
            raise OptionError(f"{what}: dynamic shapes for '{unknown[0]}', which is no input: there are {', '.join(trees)}")
        pairs = [(name, trees[name], spec) for name, spec in shapes.items()]
    elif isinstance(shapes, tuple | list):
        if len(shapes) > len(trees):
            raise OptionError(f"{what}: dynamic shapes for {len(shapes)} inputs, of which there are {len(trees)}")
        pairs = [(name, tree, spec) for (name, tree), spec in zip(trees.items(), shapes, strict=False)]
    else:
        raise OptionError(f"{what}: dynamic shapes of type {type(shapes).__name__}: expected a dict by input, or a tuple")
    tensors = {place: which for which, place in enumerate(arguments.tensors())}
    for name, tree, spec in pairs:
        for place, axis, dim in _dims(tree, spec, name, arguments, what):
            pair = tensors[place], axis
            if isinstance(dim, str):
                names[pair] = dim
                wanted[pair] = torch.export.Dim.DYNAMIC
            elif isinstance(dim, int) and not isinstance(dim, bool):
                size = arguments.leaves[place].shape[axis]
                if dim != size:
                    raise OptionError(f"{what}: axis {axis} of '{name}' is stated as {dim}, but is {size} in the example inputs")
            elif dim is not None:
                wanted[pair] = dim
                if getattr(dim, "__name__", None):
                    names[pair] = dim.__name__
    return wanted, names


def _trees(module: Any, arguments: Arguments, what: str) -> dict[str, Any]:
    """The leaves' places under each argument, in the nesting of the arguments."""
    args, kwargs = arguments.structured(range(len(arguments.leaves)))
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    positional = [
        parameter.name for parameter in parameters if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    positional += [f"args_{count}" for count in range(len(positional), len(args))]
    return dict(zip(positional, args, strict=False)) | kwargs


def _dims(tree: Any, spec: Any, name: str, arguments: Arguments, what: str) -> list[tuple[int, int, Any]]:
    """(place of the leaf, axis, dim) for every axis that `spec` speaks of."""
    import torch

    if spec is None:
        return []
    if not isinstance(tree, int):
        parts = list(tree.items()) if isinstance(tree, Mapping) else list(enumerate(tree))
        found = []
        if isinstance(spec, Mapping):
            unknown = [key for key in spec if key not in dict(parts)]
            if unknown:
                raise OptionError(f"{what}: '{name}' has no part {unknown[0]!r}")
            chosen = [(key, part, spec.get(key)) for key, part in parts]
        else:
            chosen = [(key, part, dims) for (key, part), dims in zip(parts, spec, strict=False)]
        for key, part, dims in chosen:
            found += _dims(part, dims, f"{name}[{key!r}]", arguments, what)
        return found
    leaf = arguments.leaves[tree]
    if not isinstance(leaf, torch.Tensor):
        raise OptionError(f"{what}: dynamic shapes for '{name}', which is no tensor")
    if isinstance(spec, Mapping):
        axes = dict(spec)
    elif isinstance(spec, tuple | list):
        if len(spec) != leaf.ndim:
            raise OptionError(f"{what}: '{name}' has {leaf.ndim} axes, {len(spec)} are stated")
        axes = dict(enumerate(spec))
    else:
        raise OptionError(f"{what}: the dynamic axes of '{name}' are a {type(spec).__name__}: expected {{axis: name}}")
    found = []
    for axis, dim in axes.items():
        if not isinstance(axis, int) or not -leaf.ndim <= axis < leaf.ndim:
            raise OptionError(f"{what}: '{name}' has no axis {axis!r}: it has {leaf.ndim}")
        found.append((tree, axis % leaf.ndim, dim))
    return found


def traced_at(arguments: Arguments, wanted: Mapping[tuple[int, int], Any], names: Mapping[tuple[int, int], str]) -> Arguments:
    """The example inputs with 2 where an axis asked to be dynamic has size 1, of which torch would make a constant."""
    tensors = arguments.tensors()
    ones = {pair for pair in wanted if arguments.leaves[tensors[pair[0]]].shape[pair[1]] == 1}
    called = {names[pair] for pair in ones if pair in names}
    return arguments.resized({pair: 2 for pair in wanted if pair in ones or names.get(pair) in called})
