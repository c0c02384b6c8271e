"""Which dims of the inputs are dynamic: as asked for, or found by trying.

Trying means: export with every axis left to torch, see which it fixed, then run module and program side by side at
other sizes. A dim at which they part is fixed again. That is one export where all goes well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphopt.programs.agreement import agree, answer
from graphopt.programs.arguments import Arguments
from graphopt.programs.tracing import ExportError, dynamic_axes, export, export_either_way, range_of

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

#: How often dims are fixed again, one export each; after that all are.
_MOST = 3


@dataclass
class Found:
    """A program, and what trying said of its dims: for each axis (input, axis) that is fixed, why; for each
    symbol its lower end, and the sizes at which module and program were seen to agree."""

    program: ExportedProgram
    fixed: dict[tuple[str, int], str] = field(default_factory=dict)
    lowest: dict[str, int] = field(default_factory=dict)
    worked: dict[str, set[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def widened(module: torch.nn.Module, arguments: Arguments) -> Arguments:
    """The example inputs at batch 2 where they have batch 1, of which torch would make a constant; as they are if that does not run."""
    places = arguments.tensors()
    firsts = [which for which, place in enumerate(places) if arguments.leaves[place].ndim and arguments.leaves[place].shape[0] == 1]
    ranked = [which for which, place in enumerate(places) if arguments.leaves[place].ndim]
    if not firsts or firsts != ranked:
        return arguments
    wide = arguments.resized({(which, 0): 2 for which in firsts})
    return wide if answer(module, wide) is not None else arguments


def find(module: torch.nn.Module, arguments: Arguments) -> Found:
    """Export with every dim dynamic that turns out to be.

    Raises:
        ExportError: the module cannot be exported, with no dynamic dim either.
    """
    traced = widened(module, arguments)
    sizes = {(which, axis): size for which, place in enumerate(traced.tensors()) for axis, size in enumerate(traced.leaves[place].shape)}
    program, wanted, strict = _first(module, traced, set(sizes))
    if program is None:
        return Found(export_either_way(module, *arguments.structured(), None), notes=["no dim is dynamic: torch.export failed with any"])
    fixed = dict.fromkeys(sizes.keys() - wanted, "torch.export fails where it is dynamic")
    for _ in range(_MOST):
        found = Found(program)
        bad = _disproved(module, program, traced, found)
        if not bad and traced is not arguments and not agree(answer(module, arguments), answer(program.module(), arguments)):
            traced = arguments
            bad = {
                pair: "at size 1, the example's, a program of any size does not compute what the module does"
                for pair in wanted
                if pair[1] == 0
            }
        if not bad:
            break
        fixed.update(bad)
        wanted = wanted - bad.keys()
        program = export(module, *traced.structured(), _auto(traced, wanted), strict=strict)
    else:
        fixed.update(dict.fromkeys(wanted, "it could not be told which dims can change"))
        program = export(module, *arguments.structured(), None, strict=strict)
        found = Found(program)
    names = _names(program)
    dynamic = {(axis.input, axis.axis) for axis in dynamic_axes(program)}
    for pair in wanted:
        if (names[pair[0]], pair[1]) not in dynamic:
            one = "torch.export makes a constant of size 1" if sizes[pair] < 2 else f"the module needs {sizes[pair]}"
            fixed.setdefault(pair, one)
    found.fixed = {(names[which], axis): why for (which, axis), why in sorted(fixed.items())}
    return found


def _first(
    module: torch.nn.Module, arguments: Arguments, every: set[tuple[int, int]]
) -> tuple[ExportedProgram | None, set[tuple[int, int]], bool]:
    """A program with as many axes dynamic as goes, those axes, and whether it took strict tracing; None: with none at all."""
    firsts = {pair for pair in every if pair[1] == 0}
    for wanted, strict in ((every, False), (every, True), (firsts, False)):
        if not wanted:
            continue
        try:
            return export(module, *arguments.structured(), _auto(arguments, wanted), strict=strict), wanted, strict
        except ExportError:  # what is wrong, the export without dynamic dims says
            continue
    return None, set(), False


def _auto(arguments: Arguments, wanted: Iterable[tuple[int, int]]) -> Any:
    import torch

    return spec_of(arguments, dict.fromkeys(wanted, torch.export.Dim.AUTO))


def spec_of(arguments: Arguments, wanted: Mapping[tuple[int, int], Any]) -> Any:
    """`dynamic_shapes` for torch: a dict by argument where all are named, else as the arguments are nested."""
    from torch.utils import _pytree as pytree

    leaves: list[Any] = [None] * len(arguments.leaves)
    for which, place in enumerate(arguments.tensors()):
        axes = {axis: dim for (input_, axis), dim in wanted.items() if input_ == which}
        leaves[place] = axes or None
    args, kwargs = pytree.tree_unflatten(leaves, arguments.spec)
    return tuple(args) if not kwargs else kwargs if not args else (*args, *kwargs.values())


def _names(program: ExportedProgram) -> list[str]:
    from graphopt.programs.tracing import tensor_inputs

    return [node.name for node in tensor_inputs(program)]


def _disproved(module: torch.nn.Module, program: ExportedProgram, arguments: Arguments, found: Found) -> dict[tuple[int, int], str]:
    """The axes (which tensor, axis) at whose other sizes program and module part, with the reason."""
    names = _names(program)
    axes: dict[str, list[tuple[int, int]]] = {}
    for axis in dynamic_axes(program):
        if axis.size.is_Symbol:
            axes.setdefault(str(axis.size), []).append((names.index(axis.input), axis.axis))
    if not axes:
        return {}
    symbols = {str(symbol): symbol for symbol in program.range_constraints}
    runs = program.module()
    tensors = arguments.tensors()
    trials = {}
    for name, pairs in axes.items():
        limits = range_of(program, symbols[name]) if name in symbols else (0, None)
        trials[name] = _sizes(arguments.leaves[tensors[pairs[0][0]]].shape[pairs[0][1]], *limits)
    together = [{name: sizes[place] for name, sizes in trials.items() if sizes[place]} for place in (0, 1)]
    bad: dict[tuple[int, int], str] = {}
    if all(_agree_at(module, runs, arguments, axes, sizes) for sizes in together):
        found.worked = {name: {sizes[name] for sizes in together if name in sizes} for name in axes}
    else:
        for name, sizes in trials.items():
            reason = _reason(module, runs, arguments, {name: axes[name]}, sizes, found)
            if reason is not None:
                bad.update(dict.fromkeys(axes[name], reason))
    if not bad:
        for name in axes:
            low = range_of(program, symbols[name])[0] if name in symbols else 0
            if any(axis == 0 for _, axis in axes[name]) and _agree_at(module, runs, arguments, {name: axes[name]}, {name: 1}):
                low = 1
                found.worked[name].add(1)
            found.lowest[name] = max(low, 1)
    return bad


def _sizes(have: int, low: int, high: int | None) -> tuple[int | None, ...]:
    """Sizes to try beside the example's: first one beside it, then others far from it; None for one out of the range."""

    def first(*wanted: int) -> int | None:
        return next((size for size in wanted if size != have and size >= max(low, 2) and (high is None or size <= high)), None)

    return first(have + 1, have - 1), first(have * 2, have // 2), first(have // 2), first(have + have // 2)


def _reason(
    module: Any, runs: Any, arguments: Arguments, axes: Mapping[str, Sequence[tuple[int, int]]], sizes: Sequence[int | None], found: Found
) -> str | None:
    """Why a dim cannot be dynamic; None where module and program agree wherever the module runs, and it runs at another size.

    A size one off does not count as another: a convolution with a stride may round it away.
    """
    (name,) = axes
    worked: set[int] = set()
    for size in dict.fromkeys(size for size in sizes if size is not None):
        agreed = _agree_at(module, runs, arguments, axes, {name: size})
        if agreed is False:
            return f"at size {size} the exported program does not compute what the module does"
        if agreed:
            worked.add(size)
    far = {size for size in sizes[1:] if size is not None}
    if not worked & (far or worked):
        return f"the module itself runs at none of the sizes tried ({', '.join(map(str, sorted(far))) or 'none is in its range'})"
    failed = [size for size in sizes if size is not None and size not in worked]
    if failed:
        found.notes.append(f"at size {failed[0]} of a dim where {min(worked)} is right the module itself does not run")
    found.worked[name] = worked
    return None


def _agree_at(
    module: Any, runs: Any, arguments: Arguments, axes: Mapping[str, Sequence[tuple[int, int]]], sizes: Mapping[str, int]
) -> bool | None:
    """Whether program and module give the same there; None where the module does not run."""
    resized = arguments.resized({pair: sizes[name] for name in sizes for pair in axes[name]})
    expected = answer(module, resized)
    return None if expected is None else agree(expected, answer(runs, resized))
