"""The example inputs of a module as a flat list: resized, and with other values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.programs.captured import fit

if TYPE_CHECKING:
    import torch


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
        """Arguments as they are passed, with other leaves if given; tensors are the same objects."""
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

    def copied(self) -> Arguments:
        """With tensors of their own, for a module that may write into them."""
        import torch

        return Arguments(tuple(leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves), self.spec)

    def varied(self) -> Arguments:
        """With the elements of every tensor in another order: other values, each of which is one that the tensor had.

        A tensor of real numbers that are all the same, a placeholder's zeros, gets normal ones.
        """
        import torch

        generator = torch.Generator().manual_seed(0)
        leaves = [self._other(leaf, generator) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        return Arguments(tuple(leaves), self.spec)

    @staticmethod
    def _other(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        if tensor.numel() < 2:
            return tensor
        if tensor.is_floating_point() and bool((tensor == tensor.reshape(-1)[0]).all()):
            return torch.randn(tensor.shape, generator=generator).to(tensor)
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.detach().reshape(-1)[order].reshape(tensor.shape)
