"""Operators that permute axes, read as the permutation that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

PERMUTATIONS = (
    "aten.permute.default", "aten.transpose.int", "aten.t.default", "aten.swapaxes.default", "aten.numpy_T.default", "aten.mT.default",
    "aten.movedim.int", "aten.movedim.intlist",
)  # fmt: skip


def permutation(node: Node, context: AtenContext) -> tuple[int, ...] | None:
    """Axis i of the result is axis p[i] of what is permuted; None where that is not known."""
    name, given = context.op(node).split(".")[1], list(context.arguments(node).values())
    rank = context.rank(given[0])
    if rank is None:
        return None
    axes = list(range(rank))
    if name == "permute":
        return tuple(int(a) % rank for a in given[1]) if rank else ()
    if name in ("transpose", "swapaxes"):
        if rank:
            a, b = int(given[1]) % rank, int(given[2]) % rank
            axes[a], axes[b] = b, a
        return tuple(axes)
    if name in ("t", "numpy_T"):
        return tuple(axes[::-1])
    if name == "mT":
        return (*axes[:-2], axes[-1], axes[-2])
    sources, targets = ([int(a) % rank for a in (g if isinstance(g, list | tuple) else [g])] for g in given[1:3])
    order = [a for a in axes if a not in sources]
    for target, source in sorted(zip(targets, sources)):
        order.insert(target, source)
    return tuple(order)


def permuted(editor: AtenEditor, x: Node, axes: tuple[int, ...]) -> Node:
    """State a permutation; x itself where it is none. Two axes that change places are a transpose."""
    moved = [i for i, a in enumerate(axes) if i != a]
    if not moved:
        return x
    if len(moved) == 2:
        return editor.call("aten.transpose.int", [x, moved[0], moved[1]])
    return editor.call("aten.permute.default", [x, list(axes)])
