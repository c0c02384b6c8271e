"""What a graph says without being run: constants, shapes of weights, graphs inside nodes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node; None for a value that is computed. Reads no data."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is not None and node.op_type == "Constant" and node.domain == "":
        for key, attr in node.attributes.items():
            if attr.is_ref():
                return None
            if key == "value":
                return attr.as_tensor()
            if key in ("value_int", "value_ints", "value_float", "value_floats"):
                return ir.tensor(attr.value)
    return None


def shape_of(value: ir.Value | None) -> list[int | str | None] | None:
    """Dimensions as sizes, names, or None where unknown; None for an unknown rank. Sees through dequantized weights."""
    for _ in range(8):
        if value is None:
            return None
        tensor = constant_tensor(value)
        if tensor is not None:
            return [d if isinstance(d, int) else None for d in tensor.shape]
        if value.shape is not None:
            return [d.value if isinstance(d, ir.SymbolicDim) else d if d >= 0 else None for d in value.shape]
        node = value.producer()
        if node is None or not node.inputs or node.op_type not in (
            "DequantizeLinear", "Cast", "CastLike", "Identity", "Mul", "Div", "Dropout", "Clip"
        ):  # fmt: skip
            return None
        value = node.inputs[0]
    return None


def dim_of(value: ir.Value | None, axis: int) -> int | str | None:
    """One dimension: a size, a name, or None where unknown."""
    shape = shape_of(value)
    return shape[axis] if shape and -len(shape) <= axis < len(shape) else None


def constant_array(value: ir.Value | None, limit: int = 65536) -> np.ndarray | None:
    """A numeric constant of at most `limit` elements, also behind an Identity, Cast or change of shape."""
    for _ in range(6):
        tensor = constant_tensor(value)
        if tensor is not None:
            return tensor.numpy() if tensor.size <= limit and tensor.dtype != ir.DataType.STRING else None
        node = value.producer() if value is not None else None
        if node is None or node.op_type not in ("Identity", "Cast", "CastLike", "Unsqueeze", "Squeeze", "Reshape"):
            return None
        value = node.inputs[0]
    return None


def constant_scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element; None for anything else."""
    array = constant_array(value, 1)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def is_float_value(value: ir.Value) -> bool:
    """Whether a value is of floats, as far as is known."""
    return value.dtype is None or value.dtype.is_floating_point()


def graphs_in(node: ir.Node) -> list[ir.Graph]:
    """The graphs in a node's attributes."""
    found: list[ir.Graph] = []
    for attr in node.attributes.values():
        if not attr.is_ref() and attr.type == ir.AttributeType.GRAPH:
            found.append(attr.value)
        elif not attr.is_ref() and attr.type == ir.AttributeType.GRAPHS:
            found.extend(attr.value)
    return found
