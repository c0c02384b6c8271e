"""A module and a program side by side: whether they give the same, on the example inputs and on others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import InputError
from graphopt.programs.arguments import Arguments
from graphopt.programs.failures import line_of_error
from graphopt.programs.torch_side import kept_buffers, preserved

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

#: Program and module are the same operators: they part by no more than the order of a reduction.
_RELATIVE = 1e-4


def answer(module: torch.nn.Module, arguments: Arguments) -> list[Any] | None:
    """The outputs as a flat list; None where it raises. Module and arguments stay as they are."""
    try:
        return _outputs(module, arguments)
    except Exception:  # the module's own code, or a check of the program: either way it does not run so
        return None


def _outputs(module: torch.nn.Module, arguments: Arguments) -> list[Any]:
    with preserved(module):
        return _call(module, arguments)


def _call(module: torch.nn.Module, arguments: Arguments) -> list[Any]:
    import torch
    from torch.utils import _pytree as pytree

    args, kwargs = arguments.copied().structured()
    # An output may be a buffer itself, which a later call, or putting it back, changes.
    return [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in pytree.tree_leaves(module(*args, **kwargs))]


def check_runs(module: torch.nn.Module, arguments: Arguments, what: str) -> tuple[list[Any], list[str]]:
    """The outputs of the module on its example inputs, and the attributes (no buffers) that it changes when it runs.

    Raises:
        InputError: it does not run, gives no tensor, or its answers depend on attributes that it changes.
    """
    import torch

    try:
        with preserved(module) as changed:
            outputs = _call(module, arguments)
        if changed:
            with preserved(module):
                with kept_buffers(module):
                    _call(module, arguments)
                twice = _call(module, arguments)
    except Exception as error:
        place = line_of_error(error)
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        where = f" at {place}" if place is not None else ""
        raise InputError(f"{what}: fails on the example inputs{where}: {type(error).__name__}" + (f": {first}" if first else "")) from error
    if not any(isinstance(leaf, torch.Tensor) for leaf in outputs):
        raise InputError(f"{what}: gives no tensor")
    if changed and not agree(outputs, twice):
        names = ", ".join(repr(name) for name in sorted(changed))
        raise InputError(
            f"{what}: its answers depend on {names}, which forward changes: torch.export would make a constant of it; "
            "register it as a buffer, or pass and return it"
        )
    return outputs, sorted(changed)


def check_same(module: torch.nn.Module, program: ExportedProgram, arguments: Arguments, expected: Sequence[Any], what: str) -> None:
    """Raises InputError where the program is not the module, on the example inputs or on others of the same sizes.

    torch.export makes constants of what it sees in Python: attributes, the time, values read out of tensors.
    """
    runs = program.module()
    if not agree(expected, answer(runs, arguments)):
        if not agree(expected, answer(module, arguments)):
            raise InputError(f"{what}: gives another answer when it is called again with the same inputs; it cannot be verified")
        raise InputError(f"{what}: the exported program does not compute what the module does on the example inputs")
    others = arguments.varied()
    ours = answer(module, others)
    if ours is not None and not agree(ours, answer(runs, others)):
        raise InputError(
            f"{what}: the exported program computes something else than the module where the inputs have other values than the example's"
            ": torch.export took a value out of a tensor, or out of Python, for a constant"
        )


def agree(expected: Sequence[Any] | None, got: Sequence[Any] | None) -> bool:
    """Whether two lists of outputs are the same but for rounding."""
    if expected is None or got is None or len(expected) != len(got):
        return False
    return all(_close(one, other) for one, other in zip(expected, got, strict=True))


def _close(one: Any, other: Any) -> bool:
    import torch

    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return type(one) is not type(other) or one == other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() and not one.is_complex():
        return torch.equal(one, other)
    wide = one.dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128)
    relative = _RELATIVE if wide else 0.05
    if not wide:
        one, other = one.float(), other.float()
    finite = one[torch.isfinite(one)].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(other, one, rtol=relative, atol=relative * scale + 1e-12, equal_nan=True)
