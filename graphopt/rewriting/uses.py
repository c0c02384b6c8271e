"""Who consumes a value, answered in constant time.

`ir.Value.uses()` copies the list of uses at each call, which makes a loop over the consumers of one value quadratic.
"""

from __future__ import annotations

from itertools import islice

import onnx_ir as ir


def use_count(value: ir.Value) -> int:
    """How often nodes consume a value: in its graph, and in subgraphs that capture it."""
    return len(value._uses)  # the container behind uses(), which copies it


def some_consumers(value: ir.Value, limit: int) -> list[ir.Node]:
    """The consumers of the first `limit` uses of a value, without a look at the others."""
    return [usage.node for usage in islice(value._uses, limit)]


def is_used(value: ir.Value) -> bool:
    """Whether a node consumes a value or it is an output of a graph."""
    return bool(value._uses) or value.is_graph_output()


def release_inputs(node: ir.Node) -> list[ir.Value]:
    """Let a node that goes away let go of its inputs; returns them. Linear, where one input at a time is quadratic."""
    freed = []
    for i, value in enumerate(node._inputs):
        if value is not None:
            value._remove_usage(node, i)
            freed.append(value)
    node._inputs = (None,) * len(node._inputs)
    return freed


def drop_detached_uses(value: ir.Value) -> None:
    """Let nodes that stand in no graph, and came last, let go of a value."""
    while value._uses:
        node = next(reversed(value._uses)).node
        if node.graph is not None:
            return
        release_inputs(node)
