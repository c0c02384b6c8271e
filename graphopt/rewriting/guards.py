"""Guards that rewrites share: each returns what it established, or refuses with its reason."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx_ir as ir

from graphopt.rewriting.base import Refuse, node_label
from graphopt.rewriting.constants import constant_tensor
from graphopt.rewriting.uses import is_used, some_consumers, use_count

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_FEW = 8  # consumers that are looked at for a better reason; looking at all, for each of them, would be quadratic
_SHOWN = 3  # consumers that a reason names


def require(condition: bool, reason: str) -> None:
    """Refuse unless `condition` holds."""
    if not condition:
        raise Refuse(reason)


def constant(value: ir.Value | None, what: str) -> np.ndarray:
    """The data of a constant input called `what` ("the weight"), read only; never one that a caller may override."""
    tensor = constant_tensor(value)
    if tensor is None:
        if value is None:
            raise Refuse(f"{what} is left out")
        if value.is_initializer():
            raise Refuse(f"{what} {value.name!r} is also a graph input, so a caller may override it")
        raise Refuse(f"{what} {value.name!r} is not constant")
    return tensor.numpy()


def float_constant(value: ir.Value | None, what: str, types: Container[ir.DataType] = FLOATS) -> np.ndarray:
    """The data of a constant input of a floating-point type."""
    array = constant(value, what)
    dtype = constant_tensor(value).dtype  # type: ignore[union-attr]
    if dtype not in types:
        raise Refuse(f"{what} {value.name!r} is {dtype.name}, not a type that can be folded")  # type: ignore[union-attr]
    return array


def only_consumer(value: ir.Value, what: str, consumer: ir.Node) -> None:
    """Refuse unless `consumer` alone consumes `value`, once, in its own graph, and it is no graph output."""
    if value.is_graph_output():
        raise Refuse(f"{what} {value.name!r} is also a graph output")
    count = use_count(value)
    if count <= _FEW and any(usage.node.graph is not consumer.graph for usage in value.uses()):
        raise Refuse(f"{what} {value.name!r} is captured by a subgraph")
    if count != 1:
        raise Refuse(f"{what} {value.name!r} has {count} consumers{_named(value, count)}")


def _named(value: ir.Value, count: int) -> str:
    """The first few consumers by name, for a reason."""
    if not count:
        return ""
    shown = dict.fromkeys(node_label(n) for n in some_consumers(value, _SHOWN))  # one may consume it twice
    rest = count - _SHOWN
    return ": " + ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def unused_outputs(node: ir.Node, first: int = 1) -> None:
    """Refuse if any output of `node` from number `first` on is consumed."""
    for value in node.outputs[first:]:
        if is_used(value):
            raise Refuse(f"its output {value.name!r} is used")


def same_graph(*nodes: ir.Node) -> None:
    """Refuse unless all nodes stand in one graph: a weight of an outer graph may serve a subgraph many times."""
    if any(n.graph is not nodes[0].graph for n in nodes):
        raise Refuse("its nodes stand in different graphs")


def attribute(node: ir.Node, name: str, default=None):
    """The value of an attribute, or `default`; refuses one that a function's caller decides.

    Strings come as `str`, lists as tuples.
    """
    found = node.attributes.get(name)
    if found is None:
        return default
    if found.is_ref():
        raise Refuse(f"attribute {name} is a parameter of the function")
    return found.value


def finite(array: np.ndarray, what: str) -> np.ndarray:
    """Refuse new weights that overflowed or were not numbers."""
    if not np.isfinite(np.asarray(array, np.float64)).all():
        raise Refuse(f"{what} would not be finite")
    return array
