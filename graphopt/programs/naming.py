"""Names for what torch leaves nameless: the dynamic dims, and the outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphopt.errors import OptionError
from graphopt.programs.tracing import dynamic_axes, range_of, tensor_inputs

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from graphopt.programs.captured import Captured


#: The file in a `.pt2` that keeps what a program itself does not: the names of its dims and outputs, and their lowest sizes.
NAMES = "graphopt.json"


@dataclass
class NamedDims:
    """Dims by input and axis, their ranges, torch's symbols by our names, and remarks."""

    dims: dict[str, dict[int, str]] = field(default_factory=dict)
    ranges: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    symbols: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def name_dims(program: ExportedProgram, given: Mapping[tuple[str, int], str], lowest: Mapping[str, int]) -> NamedDims:
    """Names for the symbols of the inputs: the user's, else after the axis: batch, seq, height, width, length.

    `lowest` is the smallest size at which a symbol was seen to work, where that is below the range that torch gives.
    """
    named = NamedDims()
    axes = dynamic_axes(program)
    ranks = {node.name: (node.meta["val"].ndim, node.meta["val"].is_floating_point()) for node in tensor_inputs(program)}
    known = {str(symbol): symbol for symbol in program.range_constraints}
    taken: set[str] = set()
    for axis in axes:
        for symbol in sorted(axis.size.free_symbols, key=str):
            if str(symbol) in named.symbols:
                continue
            name = given.get((axis.input, axis.axis)) if axis.size.is_Symbol else None
            if name is None:
                name = _free(_usual(axis.axis, *ranks[axis.input]) if axis.size.is_Symbol else f"dim{axis.axis}", taken)
            taken.add(name)
            named.symbols[str(symbol)] = name
            low, high = range_of(program, known[str(symbol)]) if str(symbol) in known else (0, None)
            low = lowest.get(str(symbol), low)
            if name in named.ranges:  # two symbols of one name: torch knows of no tie, the user does
                low, high = max(low, named.ranges[name][0]), min((h for h in (high, named.ranges[name][1]) if h is not None), default=None)
            named.ranges[name] = (max(low, 1), high)
    for axis in axes:
        named.dims.setdefault(axis.input, {})[axis.axis] = renamed(str(axis.size), named.symbols)
        asked = given.get((axis.input, axis.axis))
        if asked is not None and axis.size.is_Symbol and named.symbols[str(axis.size)] != asked:
            named.notes.append(f"'{asked}' is the same dim as '{named.symbols[str(axis.size)]}': the module makes them equal")
    for name, (low, high) in named.ranges.items():
        where = ", ".join(f"axis {axis} of '{which}'" for which, dims in named.dims.items() for axis, dim in dims.items() if dim == name)
        if where:
            named.notes.append(f"'{name}' is dynamic ({low} to {high if high is not None else 'any size'}): {where}")
    return named


def renamed(expression: str, symbols: Mapping[str, str]) -> str:
    """An expression in torch's symbols in our names."""
    return re.sub(r"[A-Za-z_]\w*", lambda match: symbols.get(match[0], match[0]), expression)


def _usual(axis: int, rank: int, is_float: bool) -> str:
    if axis == 0:
        return "batch"
    if rank == 4 and is_float:
        return ("batch", "channels", "height", "width")[axis]
    if rank == 5 and is_float:
        return ("batch", "channels", "depth", "height", "width")[axis]
    if rank == 2 and not is_float:
        return "seq"
    if rank == 3 and axis == 1:
        return "seq"
    if rank == 3 and is_float:
        return "length"
    return f"dim{axis}"


def _free(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(f"{name}_{count}" for count in range(2, len(taken) + 3) if f"{name}_{count}" not in taken)


def name_outputs(program: ExportedProgram, inputs: Sequence[str], wanted: Sequence[str] | None, what: str) -> tuple[str, ...]:
    """Names of the outputs that are tensors or sizes: as asked for, else the keys under which the module returns them.

    Raises:
        OptionError: as many names as there are outputs are needed, each once.
    """
    from torch.utils import _pytree as pytree

    signature = program.graph_signature
    places = [place for place, name in enumerate(signature.user_outputs) if isinstance(name, str)]
    held = {*program.state_dict, *program.constants}
    if wanted is not None:
        if len(wanted) != len(places):
            raise OptionError(f"{what}: {len(wanted)} names for {len(places)} outputs")
        clash = next((name for name in wanted if list(wanted).count(name) > 1 or name in inputs or name in held), None)
        if clash is not None:
            raise OptionError(f"{what}: no output can be called '{clash}': it is the name of another, of an input or of a parameter")
        return tuple(wanted)
    spec = program.call_spec.out_spec
    keys: list[str] = []
    if spec is not None:
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        keys = [_path(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    names: list[str] = []
    taken = {*inputs, *held}
    for place in places:
        key = keys[place] if place < len(keys) else f"output_{place}"
        names.append(_free(key, taken))
        taken.add(names[-1])
    return tuple(names)


def _path(path: tuple[Any, ...]) -> str:
    """`("hidden", 0)` as "hidden_0"; what has no name of its own is "output", "output_0", ..."""
    parts = [str(getattr(step, "key", getattr(step, "name", getattr(step, "idx", "")))) for step in path]
    text = "_".join(part for part in parts if part)
    return f"output_{text}" if text[:1].isdigit() else text or "output"


def names_of(captured: Captured) -> str:
    """What :data:`NAMES` holds."""
    dims = [[name, axis, dim] for name, axes in captured.dims.items() for axis, dim in axes.items() if dim in captured.ranges]
    lowest = {name: low for name, (low, _) in captured.ranges.items()}
    return json.dumps({"dims": dims, "lowest": lowest, "outputs": list(captured.outputs)})


def kept_names(text: str, program: ExportedProgram) -> tuple[dict[tuple[str, int], str], dict[str, int], tuple[str, ...] | None]:
    """Names of dims by input and axis, lowest sizes by torch's symbol, and names of outputs, as far as they fit the program."""
    try:
        held = json.loads(text)
        asked = {(str(name), int(axis)): str(dim) for name, axis, dim in held["dims"]}
        sizes = {str(name): int(low) for name, low in held["lowest"].items()}
        outputs = tuple(str(name) for name in held["outputs"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}, {}, None
    dims: dict[tuple[str, int], str] = {}
    lowest: dict[str, int] = {}
    for axis in dynamic_axes(program):
        name = asked.get((axis.input, axis.axis))
        if name is not None and name.isidentifier() and axis.size.is_Symbol:
            dims[axis.input, axis.axis] = name
            lowest[str(axis.size)] = max(sizes.get(name, 2), 1)
    fits = len(outputs) == sum(isinstance(name, str) for name in program.graph_signature.user_outputs)
    return dims, lowest, outputs if fits and len(set(outputs)) == len(outputs) else None
