"""Helpers of the tests: build small models, run one pass, compare under ONNX Runtime with its optimizations off."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper

from graphopt.pipeline.registry import Registry
from graphopt.rewriting import ChangeLog, Context

REGISTRY = Registry.discover()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def array(*shape: int, seed: int = 0, dtype: str = "float32", low: float | None = None) -> np.ndarray:
    """Seeded normal values, or uniform ones in [low, low + 1) where `low` is given (variances)."""
    r = rng(seed)
    data = r.standard_normal(shape) if low is None else low + r.random(shape)
    return np.asarray(data, dtype)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str] | Mapping[str, Any],
    initializers: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    types: Mapping[str, int] | None = None,
    overridable: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    opsets: Mapping[str, int] | None = None,
    value_info: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """A checked model. `inputs`: name to shape (None, str or int a dimension); `outputs`: names (shapes inferred), or name to shape.

    `types`: element types of inputs and outputs where they are not float32 (`onnx.TensorProto.INT64`, ...).
    `overridable`: initializers that are graph inputs too.
    """
    types, initializers = types or {}, initializers or {}

    def info(name: str, shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, types.get(name, onnx.TensorProto.FLOAT), shape)

    graph_inputs = [info(n, s) for n, s in inputs.items()]
    for name in overridable:
        data = initializers[name]
        graph_inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(data.dtype), data.shape))
    wanted = outputs if isinstance(outputs, Mapping) else dict.fromkeys(outputs)
    graph = helper.make_graph(
        list(nodes), "test", graph_inputs, [info(n, s) for n, s in wanted.items()],
        initializer=[numpy_helper.from_array(np.asarray(a), n) for n, a in initializers.items()], value_info=list(value_info),
    )
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, v) for d, v in (opsets or {}).items()]
    made = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=list(functions))
    if any(shape is None for shape in wanted.values()):
        inferred = onnx.shape_inference.infer_shapes(made)
        for output, better in zip(made.graph.output, inferred.graph.output):
            output.CopyFrom(better)
    onnx.checker.check_model(made)
    return made


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), list(outputs), name=attributes.pop("name", outputs[0]), **attributes)


def run_pass(proto: onnx.ModelProto, name: str, **options: Any) -> tuple[onnx.ModelProto, ChangeLog]:
    """Run one registered pass over a copy of a model; the result and what the pass logged."""
    graph = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    log = ChangeLog(name)
    REGISTRY.get(name).configure({k.replace("_", "-"): v for k, v in options.items()}).run(Context(graph, log))
    drop_inferred(graph)
    result = ir.to_proto(graph)
    onnx.checker.check_model(result)
    return result, log


def drop_inferred(graph: ir.Model) -> None:
    """What saving does: leave inferred shapes out and restore declared ones."""
    for g in (graph.graph, *graph.graph.subgraphs()):
        for value in (*g.inputs, *(v for n in g for v in n.outputs)):
            if value.meta.get("graphopt.inferred"):
                value.type, value.shape = value.meta.get("graphopt.declared") or (value.type, None)


def session(proto: onnx.ModelProto, optimize: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_same(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, np.ndarray], *, rtol: float = 1e-5, exact: bool = False
) -> None:
    """Both models answer alike under ONNX Runtime with its optimizations off, names, types and shapes included.

    Floats: within `rtol` of the largest magnitude of the output and elementwise `rtol` beyond that; `exact`: bit-equal.
    """
    a, b = session(before), session(after)
    assert [o.name for o in a.get_outputs()] == [o.name for o in b.get_outputs()]
    assert [i.name for i in a.get_inputs()] == [i.name for i in b.get_inputs()]
    for want, got, out in zip(a.run(None, dict(feeds)), b.run(None, dict(feeds)), a.get_outputs()):
        assert want.dtype == got.dtype and want.shape == got.shape, f"{out.name}: {want.dtype}{want.shape} became {got.dtype}{got.shape}"
        if exact or want.dtype.kind not in "fc":
            np.testing.assert_array_equal(got, want, err_msg=out.name)
        else:
            finite = np.abs(want[np.isfinite(want)])
            np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * float(finite.max(initial=0.0)), err_msg=out.name)


def ops(proto: onnx.ModelProto) -> collections.Counter[str]:
    """Operator counts of the main graph."""
    return collections.Counter(n.op_type for n in proto.graph.node)


def reasons(log: ChangeLog) -> list[str]:
    return [r.reason for r in log.refusals]
