"""What the tests of rewrites into com.microsoft share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from tests.support import array, assert_same, ops, reasons, run_pass

MS = {"com.microsoft": 1}


def attributes(after: onnx.ModelProto, op_type: str) -> dict[str, Any]:
    """The attributes of the one node of a type in com.microsoft."""
    (found,) = [n for n in after.graph.node if n.op_type == op_type]
    assert found.domain == "com.microsoft"
    return {a.name: onnx.helper.get_attribute_value(a) for a in found.attribute}


def becomes(name: str, before: onnx.ModelProto, expected: Mapping[str, int], feeds=None, **options: Any) -> onnx.ModelProto:
    """Run a pass that must leave exactly the `expected` operators, and the numbers as they were."""
    after, log = run_pass(before, name)
    assert ops(after) == dict(expected), (ops(after), reasons(log))
    assert_same(before, after, feeds if feeds is not None else feeds_of(before), **options)
    assert not run_pass(after, name)[1].applied
    return after


def feeds_of(proto: onnx.ModelProto, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Seeded normal values for the float inputs; dimensions without a size are 3."""
    overridable = {t.name for t in proto.graph.initializer}
    found = {}
    for i, value in enumerate(v for v in proto.graph.input if v.name not in overridable):
        tensor = value.type.tensor_type
        shape = [d.dim_value or (sizes or {}).get(d.dim_param, 3) for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        found[value.name] = array(*shape, seed=i, dtype=str(dtype))
    return found
