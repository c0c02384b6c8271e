"""Operators evaluated by the reference implementation of the ONNX standard; slow to import, so imported when needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

# Movement and whole-number arithmetic: there is one right answer, to the bit.
_EXACT = """
BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Compress DepthToSpace EyeLike GatherElements GatherND IsInf IsNaN NonZero
OneHot ReverseSequence Round ScatterElements ScatterND SpaceToDepth Trilu
"""
# Floating-point arithmetic whose last bits depend on the implementation.
_ROUNDING = """
Acos Acosh Asin Asinh Atan Atanh BatchNormalization Celu Clip Cos Cosh CumSum Det Einsum Elu Erf Exp Gelu Gemm HardSigmoid
HardSwish LayerNormalization LeakyRelu Log LogSoftmax MatMul Mean Mish PRelu Pad Pow Reciprocal ReduceL1 ReduceL2 ReduceLogSum
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Selu Shrink Sigmoid Sign Sin Sinh Softmax
Softplus Softsign Tan Tanh ThresholdedRelu
"""
EXACT = frozenset(_EXACT.split())
ROUNDING = frozenset(_ROUNDING.split())


def evaluate(node: ir.Node, inputs: Sequence[np.ndarray | None], opsets: Mapping[str, int]) -> list[np.ndarray]:
    """The outputs of one node without subgraphs, for the given values of its inputs."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    names = [f"x{i}" if array is not None else "" for i, array in enumerate(inputs)]
    outputs = [f"y{i}" for i in range(len(node.outputs))]
    proto = onnx.helper.make_node(node.op_type, names, outputs, domain=node.domain)
    proto.attribute.extend(ir.to_proto(a) for a in node.attributes.values())
    wanted = [onnx.ValueInfoProto(name=name) for name in outputs]
    given = [onnx.ValueInfoProto(name=name) for name in names if name]
    graph = onnx.helper.make_graph([proto], "node", given, wanted)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    feeds = {name: array for name, array in zip(names, inputs) if name}
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports)).run(None, feeds)
    return [np.asarray(array) for array in found]
