"""Constants: what is known before the model runs, without reading the data until it is asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_SCALAR_ATTRIBUTES = {
    "value_float": np.float32,
    "value_int": np.int64,
    "value_floats": np.float32,
    "value_ints": np.int64,
}


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind a constant value, or None where the value is not constant.

    A constant is an initializer that is not also a graph input (one that is may be overridden by the caller: ONNX IR
    specification, "Graphs", initializer), or the output of a Constant node. The data are not read.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attributes.values():
        if attribute.is_ref():
            return None
        if attribute.name == "value":
            return attribute.as_tensor()
        if attribute.name in _SCALAR_ATTRIBUTES:
            return ir.tensor(np.asarray(attribute.value, _SCALAR_ATTRIBUTES[attribute.name]), name=value.name)
        if attribute.name in ("value_string", "value_strings"):
            strings = attribute.value if attribute.name == "value_strings" else [attribute.value]
            shape = ir.Shape([len(strings)] if attribute.name == "value_strings" else [])
            return ir.StringTensor([s if isinstance(s, bytes) else s.encode() for s in strings], shape=shape, name=value.name)
    return None


def constant_array(value: ir.Value | None, *, max_bytes: int | None = None) -> np.ndarray | None:
    """The data of a constant as an array (memory-mapped where the weights are external), or None.

    With `max_bytes`, a larger constant is None and is not read: for guards that look for small constants only.
    """
    tensor = constant_tensor(value)
    if tensor is None or (max_bytes is not None and tensor.nbytes > max_bytes):
        return None
    return tensor.numpy()


def scalar_of(value: ir.Value | None) -> float | int | bool | None:
    """The one element of a constant with exactly one element, as a Python number; otherwise None."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    return tensor.numpy().reshape(()).item()


def is_sparse(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is stored sparse: what is computed from its elements would be stored dense, and larger."""
    return isinstance(tensor, ir.LazyTensor) and hasattr(tensor, "indices") and hasattr(tensor, "values")
