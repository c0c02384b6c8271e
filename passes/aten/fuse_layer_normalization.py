"""`fuse-layer-normalization` on ATen graphs.

RMS normalizations stay spelled out: torch 2.13 computes its operator on the CPU in 0.9 to 1.9 times the time of the parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.rewriting import Refuse

from .normalization import ROOTS, TYPES, per_channel, read, with_parameters
from .spelled import claim

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor


def run(context: AtenContext) -> None:
    """Write them as the operator layer_norm."""
    from graphopt.aten import drive

    drive(context, ROOTS, _rewrite)


def _rewrite(root: Node, editor: AtenEditor) -> None:
    context = editor.context
    found = read(root, context)
    if found is None:
        return
    x, last, axes, epsilon, nodes = found
    dims = context.shape(x) or ()
    rank = len(dims)
    if axes != tuple(range(rank - len(axes), rank)):
        return
    sizes = dims[rank - len(axes) :]
    if any(not isinstance(d, int) for d in sizes):
        raise Refuse("the size of the normalized axes is not known")
    context.require(context.dtype(x) in TYPES and context.dtype(last) == context.dtype(x), "its types are not all one")
    last, scale, bias = with_parameters(last, nodes, lambda value: _fits(value, sizes, x, context), context)
    if scale is None and bias is None and axes == tuple(range(2, rank)) and rank > 3:
        _, factor, offset = with_parameters(last, [], lambda value: per_channel(value, x, context), context)
        if factor is not None or offset is not None:
            return  # an instance normalization
    claim(nodes, last, context)
    editor.root = last  # scale and bias may be computed after the square root
    editor.replace(last, editor.call("aten.layer_norm.default", [x, list(sizes), scale, bias, epsilon]))


def _fits(value: Any, sizes: tuple[Any, ...], x: Any, context: AtenContext) -> bool:
    return context.shape(value) == sizes and context.dtype(value) == context.dtype(x)
