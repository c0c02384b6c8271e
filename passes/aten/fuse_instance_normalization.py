"""`fuse-instance-normalization` on ATen graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.rewriting import Refuse

from .normalization import ROOTS, TYPES, per_channel, read, with_parameters
from .spelled import claim

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor


def run(context: AtenContext) -> None:
    """Write normalizations of each channel over its spatial axes as the operator instance_norm."""
    from graphopt.aten import drive

    drive(context, ROOTS, _rewrite)


def _rewrite(root: Node, editor: AtenEditor) -> None:
    context = editor.context
    found = read(root, context)
    if found is None:
        return
    x, last, axes, epsilon, nodes = found
    dims = context.shape(x) or ()
    if len(dims) < 4 or axes != tuple(range(2, len(dims))):
        return
    channels = dims[1]
    if not isinstance(channels, int):
        raise Refuse("the number of channels is not known")
    context.require(context.dtype(x) in TYPES and context.dtype(last) == context.dtype(x), "its types are not all one")
    last, scale, bias = with_parameters(last, nodes, lambda value: per_channel(value, x, context), context)
    if scale is None and bias is None:
        return  # fuse-layer-normalization has an operator that is faster
    claim(nodes, last, context)
    editor.root = last
    weight, offset = (None if v is None else editor.call("aten.view.default", [v, [channels]]) for v in (scale, bias))
    given = [x, weight, offset, None, None, True, 0.1, epsilon, False]
    editor.replace(last, editor.call("aten.instance_norm.default", given))
