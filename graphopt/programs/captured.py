"""A captured program: a functional graph of torch, the eager module that it must agree with, and what is known of its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphopt.errors import OptionError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Captured:
    """What :func:`graphopt.programs.capture.capture` made of a source.

    ``program`` is functional and lifted: no operator writes into a tensor, buffers that change are outputs named by the
    graph signature, and parameters, buffers and constants are placeholders. ``reference`` is the user's own module
    where there is one (``is_eager``), else the untouched program as a module; call it under
    :func:`graphopt.programs.torch_side.preserved`, since it may be in training mode and may write into its buffers.

    ``inputs`` names the tensor inputs, in the order in which the program takes them, after the arguments of
    ``forward``; ``outputs`` the tensors that it gives. ``dims`` says which axes are dynamic,
    ``{"image": {0: "batch"}}``, under names that :attr:`ranges` knows: the sizes that each may have (the upper end is
    None where there is no bound). An axis whose size follows from another's has an expression for its name,
    ``"2*seq"``, which has no range of its own. ``worked`` holds, for dims that were found by trying, sizes at which module and program
    were seen to agree. ``symbols`` maps torch's names of the symbols, ``s77``, to ours.
    """

    program: ExportedProgram
    reference: torch.nn.Module
    is_eager: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dims: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    worked: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    name: str = "module"
    source: str = ""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The example inputs that are tensors, by name."""
        import torch
        from torch.utils import _pytree as pytree

        leaves = [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]
        return dict(zip(self.inputs, leaves, strict=True))

    def call_with(self, tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments, positional and by name, like the example ones but with copies of these tensors."""
        import torch
        from torch.utils import _pytree as pytree

        names = iter(self.inputs)
        return pytree.tree_map(
            lambda leaf: tensors[next(names)].clone() if isinstance(leaf, torch.Tensor) else leaf, (self.args, self.kwargs)
        )

    def resized(self, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """The example tensors at other sizes of the dynamic dims, cut or repeated along their axes.

        Raises:
            OptionError: no dim has that name, or a size is out of its range.
        """
        for name, size in sizes.items():
            low, high = self.range_of(name)
            if size < low or (high is not None and size > high):
                raise OptionError(f"{name}={size}: may be {low} to {high or 'any size'}")
        return {name: self._fitted(name, tensor, sizes) for name, tensor in self.tensors().items()}

    def range_of(self, name: str) -> tuple[int, int | None]:
        """The sizes that the dim `name` may have. Raises OptionError where there is none of that name."""
        if name not in self.ranges:
            raise OptionError(f"no dynamic dim is called {name!r}: there are {', '.join(self.ranges) or 'none'}")
        return self.ranges[name]

    def replaced(self, program: ExportedProgram) -> Captured:
        """The same, with another program for the graph."""
        return dataclasses.replace(self, program=program)

    def _fitted(self, name: str, tensor: torch.Tensor, sizes: Mapping[str, int]) -> torch.Tensor:
        for axis, dim in self.dims.get(name, {}).items():
            size = sizes.get(dim)
            if size is None and dim not in self.ranges:
                size = self._size_of(dim, sizes)
            if size is not None:
                tensor = fit(tensor, axis, size)
        return tensor

    def _size_of(self, expression: str, sizes: Mapping[str, int]) -> int | None:
        """The size of an axis that follows from others; None where nothing that it follows from changes."""
        import sympy

        own = self._example_sizes()
        symbols = {name: sympy.Symbol(name, integer=True) for name in self.ranges}
        value = sympy.sympify(expression, locals=symbols)
        if not any(symbol.name in sizes for symbol in value.free_symbols):
            return None
        return int(value.subs({symbol: sizes.get(symbol.name, own.get(symbol.name, 2)) for symbol in value.free_symbols}))

    def _example_sizes(self) -> dict[str, int]:
        tensors = self.tensors()
        return {dim: tensors[name].shape[axis] for name, axes in self.dims.items() for axis, dim in axes.items() if dim in self.ranges}


def fit(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """`tensor` with `size` along `axis`: its beginning, or itself repeated. Every element is one that it had."""
    import torch

    have = tensor.shape[axis]
    if have == size or have == 0:
        return tensor
    return tensor.index_select(axis, torch.arange(size) % have)
