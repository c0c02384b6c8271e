"""Linear layers of an ATen graph as products of a matrix: rows of inputs, and the kernels of torch that take these alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor


def known_rows(x: Any, context: AtenContext) -> int | None:
    """How many rows the input of a linear layer has; None where a size is free, or where it does not lie row by row."""
    shape, strides = context.static_shape(x), context.strides(x)
    if not shape or strides is None or 0 in shape:
        return None
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != step:
            return None
        step *= size
    return math.prod(shape[:-1])


def called_on_rows(editor: AtenEditor, node: Node, kernel: Callable[[Node], Node]) -> Node:
    """The linear layer at `node` by a kernel that takes and gives a matrix; its bias is added after."""
    context = editor.context
    given, shape = context.arguments(node), context.static_shape(node)
    assert shape is not None
    x, bias = given["input"], given["bias"]
    flat = (math.prod(shape[:-1]), shape[-1])
    if len(shape) != 2:
        x = editor.call("aten.view.default", [x, [flat[0], (context.static_shape(x) or (0,))[-1]]])
    found = kernel(x)
    if len(shape) != 2:
        found = editor.call("aten.view.default", [found, list(shape)])
    return found if bias is None else editor.call("aten.add.Tensor", [found, bias])
