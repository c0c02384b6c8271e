"""How tensors lie in memory, and what follows for the operators behind one that comes to lie otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map_only

from graphopt.aten.program import operator_of
from graphopt.rewriting.base import Refuse

_MOST = 64  # operators that may come to work on another layout by one change
_READERS = frozenset({"aten.view.dtype", "aten.as_strided.default"})  # they take memory as it lies, and would take other elements


def same_layout(a: Any, b: Any) -> bool:
    """Whether two values of one shape lie alike in memory, so that a view of one is a view of the other.

    The stride of a dimension of size 1 says nothing. Values that are not single tensors are compared part by part.
    """
    mine, others = tree_leaves(a), tree_leaves(b)
    return len(mine) == len(others) and all(_same_tensor_layout(x, y) for x, y in zip(mine, others))


def _same_tensor_layout(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return True
    if a.dim() != b.dim() or a.layout is not torch.strided or b.layout is not torch.strided:
        return False
    return all(str(x) == str(y) or _is_one(size) for x, y, size in zip(a.stride(), b.stride(), a.shape))


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def relaid(old: fx.Node, new: fx.Node, infer: Callable[[fx.Node, dict[fx.Node, Any]], Any]) -> dict[fx.Node, Any]:
    """The values behind `old` that lie otherwise where `new` takes its place, as they would be.

    Args:
        infer: works out the value of a node; its second argument are values to take in the place of those that are.

    Raises:
        Refuse: an operator cannot work on the other layout, or they are too many.
    """
    changed: dict[fx.Node, Any] = {old: new.meta["val"]}
    todo = [u for u in old.users if u.op == "call_function"]
    while todo:
        node = todo.pop(0)
        if operator_of(node) in _READERS:
            raise Refuse("a view reads its memory, which the replacement lays out otherwise")
        if len(changed) > _MOST:
            raise Refuse("what replaces it lies otherwise in memory, and too many operators work on that")
        try:
            value = infer(node, changed)
        except Exception as error:
            raise Refuse("a view reads its memory, which the replacement lays out otherwise") from error
        known = changed.get(node, node.meta.get("val"))
        if not same_layout(known, value):
            changed[node] = value
            todo += [u for u in node.users if u.op == "call_function" and u not in todo]
    del changed[old]
    return changed


def substituted(node: fx.Node, changed: dict[fx.Node, Any]) -> tuple[Any, Any]:
    """The arguments of a node as values, those of `changed` in the place of what is known."""
    return tree_map_only(fx.Node, lambda n: changed[n] if n in changed else n.meta["val"], (node.args, node.kwargs))
