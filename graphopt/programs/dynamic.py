"""Which dims of the inputs are dynamic: as asked for, or found by trying.

Trying means: export with every axis left to torch, see which it fixed, then run module and program side by side at
other sizes. A dim at which they part is fixed again. That is two exports where all goes well and never more than four.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphopt.programs.captured import fit
from graphopt.programs.torch_side import preserved
from graphopt.programs.tracing import ExportError, dynamic_axes, export, range_of

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

#: Exports that finding the dynamic dims may take, the last with no dynamic dim at all.
_MOST = 4
#: Program and module are the same operators: they part by no more than the order of a reduction.
_RELATIVE = 1e-4


@dataclass
class Found:
    """A program, and what trying said of its dims: for each axis (input, axis) that is fixed, why; for each
    symbol its lower end, and the sizes at which module and program were seen to agree."""

    program: ExportedProgram
    fixed: dict[tuple[str, int], str] = field(default_factory=dict)
    lowest: dict[str, int] = field(default_factory=dict)
    worked: dict[str, set[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Arguments:
    """The example inputs of a module: a flat list of leaves, and how to put them together again."""

    leaves: tuple[Any, ...]
    spec: Any

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """The leaves of positional arguments and arguments by name."""
        from torch.utils import _pytree as pytree

        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        return cls(tuple(leaves), spec)

    def structured(self, leaves: Iterable[Any] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments as they are passed, with other leaves if given."""
        from torch.utils import _pytree as pytree

        return pytree.tree_unflatten(list(self.leaves if leaves is None else leaves), self.spec)

    def tensors(self) -> list[int]:
        """The places of the tensors among the leaves."""
        import torch

        return [place for place, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]

    def resized(self, sizes: Mapping[tuple[int, int], int]) -> Arguments:
        """With tensors cut or repeated: `sizes` maps (which tensor, axis) to a size."""
        leaves, places = list(self.leaves), self.tensors()
        for (which, axis), size in sizes.items():
            leaves[places[which]] = fit(leaves[places[which]], axis, size)
        return Arguments(tuple(leaves), self.spec)


def widened(module: torch.nn.Module, arguments: Arguments) -> Arguments:
    """The example inputs at batch 2 where they have batch 1, of which torch would make a constant; as they are if that does not run."""
    places = arguments.tensors()
    firsts = [which for which, place in enumerate(places) if arguments.leaves[place].ndim and arguments.leaves[place].shape[0] == 1]
    ranked = [which for which, place in enumerate(places) if arguments.leaves[place].ndim]
    if not firsts or firsts != ranked:
        return arguments
    wide = arguments.resized({(which, 0): 2 for which in firsts})
    return wide if _answer(module, wide) is not None else arguments


def find(module: torch.nn.Module, arguments: Arguments) -> Found:
    """Export with every dim dynamic that turns out to be.

    Raises:
        ExportError: the module cannot be exported, with no dynamic dim either.
    """
    import torch

    traced = widened(module, arguments)
    places = traced.tensors()
    every = [[(which, axis) for axis in range(traced.leaves[place].ndim)] for which, place in enumerate(places)]
    attempts = [{pair for axes in every for pair in axes}, {axes[0] for axes in every if axes}]
    fixed: dict[tuple[int, int], str] = {}
    exports, program = 0, None
    for wanted in attempts:
        if not wanted:
            continue
        exports += 1
        try:
            program = export(module, *traced.structured(), spec_of(traced, dict.fromkeys(wanted, torch.export.Dim.AUTO)))
        except ExportError:  # the export without dynamic dims says what it is
            continue
        fixed.update({pair: "torch.export fixes it when every axis is dynamic" for axes in every for pair in axes if pair not in wanted})
        break
    if program is None:
        return Found(export(module, *arguments.structured(), None), notes=["no dim is dynamic: torch.export failed with any"])
    while True:
        found = Found(program)
        bad = _disproved(module, program, traced, found)
        if not bad:
            break
        fixed.update(bad)
        wanted = wanted - bad.keys()
        exports += 1
        if not wanted or exports >= _MOST:
            found = Found(export(module, *arguments.structured(), None))
            fixed.update(dict.fromkeys(wanted, "it could not be told which dims can change"))
            break
        program = export(module, *traced.structured(), spec_of(traced, dict.fromkeys(wanted, torch.export.Dim.AUTO)))
    names = _names(found.program)
    found.fixed = {(names[which], axis): why for (which, axis), why in fixed.items()}
    return found


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
    expected = _answer(module, resized)
    return None if expected is None else agree(expected, _answer(runs, resized))


def _answer(module: Any, arguments: Arguments) -> list[Any] | None:
    """The outputs as a flat list; None where it raises."""
    from torch.utils import _pytree as pytree

    args, kwargs = arguments.structured()
    try:
        with preserved(module):
            return pytree.tree_leaves(module(*args, **kwargs))
    except Exception:  # the module's own code, or a check of the program: either way it does not run at this size
        return None


def agree(expected: Sequence[Any] | None, got: Sequence[Any] | None) -> bool:
    """Whether two lists of outputs are the same but for rounding."""
    import torch

    if expected is None or got is None or len(expected) != len(got):
        return False
    for one, other in zip(expected, got, strict=True):
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            if type(one) is type(other) and one != other:
                return False
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not one.is_floating_point() and not one.is_complex():
            if not torch.equal(one, other):
                return False
            continue
        scale = float(one.abs().nan_to_num(posinf=0).max()) if one.numel() else 0.0
        slack = _RELATIVE if one.dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128) else 0.05
        if not torch.allclose(other, one, rtol=slack, atol=slack * scale + 1e-12, equal_nan=True):
            return False
    return True
