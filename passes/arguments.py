"""Arguments of operators that are attributes in some opsets and inputs in others, and other facts that passes ask for."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from graphopt.rewriting import Context, constant_tensor

UNKNOWN: Final = "unknown"
"""An argument that is there but is not known before the model runs."""

_LIMIT = 1 << 16  # bytes; a longer integer vector is data, not an argument


def ints(context: Context, node: ir.Node, name: str, index: int) -> tuple[int, ...] | str | None:
    """An integer argument, given as attribute `name` or as input number `index`; None: left out, `UNKNOWN`: not known."""
    attribute = node.attributes.get(name)
    if attribute is not None:
        if attribute.is_ref():
            return UNKNOWN
        value = attribute.value
        return (int(value),) if isinstance(value, int) else tuple(int(v) for v in value)
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    return int_elements(context, node.inputs[index])


def int_elements(context: Context, value: ir.Value) -> tuple[int, ...] | str:
    """The elements of an integer value, constant or determined by shapes alone; `UNKNOWN` otherwise."""
    tensor = constant_tensor(value)
    if tensor is None:
        if in_function(context, value):
            return UNKNOWN  # nothing is inferred in a function: its callers may differ
        known = context.known_value(value)
        return UNKNOWN if known is None else tuple(int(v) for v in known.reshape(-1))
    if tensor.nbytes > _LIMIT or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return UNKNOWN
    return tuple(int(v) for v in tensor.numpy().reshape(-1))


def integer(node: ir.Node, name: str, default: int) -> int | None:
    """An integer attribute, or `default`; None where a function's caller decides it."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return None if attribute.is_ref() else attribute.as_int()


def text(node: ir.Node, name: str, default: str) -> str | None:
    """A string attribute, or `default`; None where a function's caller decides it."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return None if attribute.is_ref() else attribute.as_string()


def element_type(context: Context, value: ir.Value | None) -> ir.DataType | None:
    """The element type of a value where it is sure: in a function, only what a Cast or a constant settles."""
    if value is None:
        return None
    tensor = constant_tensor(value)
    if tensor is not None:
        return tensor.dtype
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast" and producer.domain == "":
        to = integer(producer, "to", 0)
        return ir.DataType(to) if to else None
    if in_function(context, value):
        return None  # a function serves callers of several types; what it declares of its values is a claim
    return context.dtype(value)


def in_function(context: Context, value: ir.Value) -> bool:
    """Whether a value belongs to the body of a local function."""
    graph = value.graph
    return graph is None or context.index.scopes[graph].function is not None


def keeps_shape(dims: tuple[int | str, ...] | None, *others: tuple[int | str, ...] | None) -> bool:
    """Whether a value of shape `dims` keeps it when it is broadcast with values of the other shapes."""
    for other in others:
        if other == ():
            continue
        if other is None or dims is None or len(other) > len(dims):
            return False
        if any(o not in (1, d) for o, d in zip(other, dims[len(dims) - len(other):])):
            return False
    return True


def normal_axes(axes: tuple[int, ...], rank: int | None) -> tuple[int, ...] | None:
    """Axes counted from the front, or None where that needs a rank that is not known."""
    if rank is None:
        return axes if all(a >= 0 for a in axes) else None
    return tuple(a + rank if a < 0 else a for a in axes)
