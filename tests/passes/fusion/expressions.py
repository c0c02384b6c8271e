"""Small models written as expressions: operands are names of values, numbers and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.support import model, node, ops, reasons, run_pass


class Expression:
    """Nodes and initializers, gathered one after the other."""

    def __init__(self, dtype: str = "float32", opset: int = 17) -> None:
        self.dtype = dtype
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}

    def __getattr__(self, op_type: str) -> Any:
        return lambda *operands, **attributes: self.op(op_type, *operands, **attributes)

    def op(self, op_type: str, *operands: Any, **attributes: Any) -> str:
        """Add a node; its output. Numbers become scalars of the model's type, lists int64 vectors, arrays stay."""
        name = attributes.pop("output", f"v{len(self.nodes)}")
        self.nodes.append(node(op_type, [self._value(o) for o in operands], [name], **attributes))
        return name

    def reduce(self, op_type: str, x: str, axes: Sequence[int], keepdims: int = 1, **attributes: Any) -> str:
        """A reduction, whose axes are an attribute or an input as the opset wants it."""
        since = 13 if op_type == "ReduceSum" else 18
        if self.opset >= since:
            return self.op(op_type, x, list(axes), keepdims=keepdims, **attributes)
        return self.op(op_type, x, axes=list(axes), keepdims=keepdims, **attributes)

    def _value(self, operand: Any) -> str:
        if isinstance(operand, str):
            return operand
        data = np.asarray(operand, np.int64) if isinstance(operand, list) else operand
        if not isinstance(data, np.ndarray):
            data = np.asarray(operand, self.dtype)
        name = f"c{len(self.initializers)}"
        self.initializers[name] = data
        return name

    def model(self, inputs: Mapping[str, Sequence[Any]], outputs: Sequence[str], **kwargs: Any) -> onnx.ModelProto:
        """The model; inputs and outputs have the type of the expression."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        types = dict.fromkeys([*inputs, *outputs], kind) | kwargs.pop("types", {})
        version = 11 if self.opset > 22 else 10 if self.opset > 20 else 8
        kwargs.setdefault("ir_version", version)
        return model(self.nodes, inputs, outputs, self.initializers, opset=self.opset, types=types, **kwargs)


def fused(name: str, before: onnx.ModelProto, expected: Mapping[str, int], **options: Any) -> onnx.ModelProto:
    """Run a pass that must leave exactly the `expected` operators."""
    after, log = run_pass(before, name, **options)
    assert ops(after) == dict(expected), (ops(after), reasons(log))
    return after


def refused(name: str, before: onnx.ModelProto, reason: str, **options: Any) -> None:
    """Run a pass that must change nothing and say why."""
    after, log = run_pass(before, name, **options)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


def unmatched(name: str, before: onnx.ModelProto) -> None:
    """Run a pass that must find nothing to say."""
    after, log = run_pass(before, name)
    assert ops(after) == ops(before) and not log.applied and not reasons(log), reasons(log)
