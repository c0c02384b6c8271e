"""Operators computed ahead, by torch itself and with the kernels that would compute them later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map_only

from graphopt.aten.context import AtenContext
from graphopt.aten.program import operator_of

# Memory as it happens to be, and operators that look at more than their arguments.
_UNCERTAIN = ("aten.empty", "aten.new_empty", "aten.resize", "aten.set_", "aten._local_scalar_dense", "aten.item")


def is_function(node: fx.Node) -> bool:
    """Whether an operator gives the same for the same arguments, wherever it stands, and does nothing else."""
    if operator_of(node) == "getitem":
        return True
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    if node.is_impure() or torch.Tag.nondeterministic_seeded in target.tags or operator_of(node).startswith(_UNCERTAIN):
        return False
    return bool(target._schema.returns) and not any(
        a.alias_info is not None and a.alias_info.is_write for a in target._schema.arguments
    )


def can_evaluate(node: fx.Node) -> bool:
    """Whether an operator can be computed ahead where its inputs are known: tensors, not sizes of a dynamic dimension."""
    return is_function(node) and operator_of(node).startswith(("aten.", "getitem")) and all(map(_is_tensors, node.all_input_nodes))


def evaluate(node: fx.Node, context: AtenContext, known: Mapping[fx.Node, Any]) -> Any:
    """What an operator gives for inputs that are constants or in `known`: a tensor, or several.

    A result that shares the memory of its input is copied, with its strides, so that it can be stored by itself.
    """
    def value(source: fx.Node) -> Any:
        return known[source] if source in known else context.program.constant(source).detach()  # type: ignore[union-attr]

    with torch.no_grad():
        args, kwargs = tree_map_only(fx.Node, value, (node.args, node.kwargs))
        found = node.target(*args, **kwargs)  # type: ignore[operator]
    expected = node.meta.get("val")
    if isinstance(expected, torch.Tensor) and (found.dtype, found.dim()) != (expected.dtype, expected.dim()):
        raise ValueError(f"it evaluates to {found.dtype} of rank {found.dim()}, not to {expected.dtype} of rank {expected.dim()}")
    return found


def stored(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with memory of its own, and the strides that the value has where they leave no gaps."""
    return tensor.clone(memory_format=torch.preserve_format).resolve_conj().resolve_neg()


def nbytes(node: fx.Node) -> int | None:
    """The size of a tensor of known shape, all its elements counted; None: it is none, or not known."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or any(not isinstance(d, int) for d in value.shape):
        return None
    return value.numel() * value.element_size()


def is_view(node: fx.Node) -> bool:
    """Whether an operator only looks at the memory of its input in another way, which costs nothing when it runs."""
    if operator_of(node) == "getitem":
        return isinstance(node.args[0], fx.Node) and is_view(node.args[0])
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and any(r.alias_info is not None for r in target._schema.returns)


def _is_tensors(node: fx.Node) -> bool:
    leaves = tree_leaves(node.meta.get("val"))
    return bool(leaves) and all(isinstance(v, torch.Tensor) for v in leaves)
