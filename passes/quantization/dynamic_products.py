"""MatMul and Gemm with constant weights: MatMulInteger, and the scaling behind it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, constant_tensor, guards

from .dynamic_weights import Dynamic, Plan, by_columns, by_rows, guard_opset, guard_sum


def product(context: Context, node: ir.Node, dynamic: Dynamic) -> Plan | None:
    """How a product is stated on integers; None where it has no weight.

    Raises Refuse where it has one, and the integers would be wrong or slow.
    """
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    left, right = constant_tensor(node.inputs[0]), constant_tensor(node.inputs[1])
    if left is not None and left.dtype in guards.FLOATS and len(left.shape) >= 2:
        guards.require(right is None, "both inputs are constant")
        guards.require(node.op_type != "MatMul", "its weight is the first factor: the runtime has no scales for its rows")
    if right is not None and (right.dtype not in guards.FLOATS or len(right.shape) < 2):
        return None  # a vector, or integers
    transposed = node.op_type == "Gemm" and bool(guards.attribute(node, "transB", 0))
    tensor = dynamic.guard_weight(node, 1, 2)
    if tensor is None:
        dynamic.between += 1
        return None
    guard_opset(context, node)
    guard_sum(int(tensor.shape[1 if transposed else 0]))
    alpha = guards.attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
    guards.require(math.isfinite(alpha) and alpha != 0, f"its product is scaled by {alpha:g}")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "Gemm":
        guards.require(not guards.attribute(node, "transA", 0), "its first input is transposed")
        if bias is not None and guards.attribute(node, "beta", 1.0) != 1.0:
            guards.float_constant(bias, "the bias, which is scaled by beta,")

    def plan(editor: Editor) -> None:
        x, scale, zero = dynamic.input(editor, node.inputs[0])  # type: ignore[arg-type]
        weight, by = dynamic.weight(editor, node.inputs[1], by_rows if transposed else by_columns, alpha)  # type: ignore[arg-type]
        name, output = node.name or node.op_type, node.outputs[0]
        sums = editor.node("MatMulInteger", [x, weight, zero], name=f"{name}_integer")
        wide = editor.node("Cast", [sums], {"to": ir.DataType.FLOAT.value}, name=f"{name}_sums")
        scales = editor.node("Mul", [scale, by], name=f"{name}_scales")
        result = editor.node("Mul", [wide, scales], name=name, like=output)
        if bias is not None:
            result = editor.node("Add", [result, _bias(editor, node, bias)], name=f"{name}_bias", like=output)
        editor.replace(output, result)

    return plan


def _bias(editor: Editor, node: ir.Node, bias: ir.Value) -> ir.Value:
    """The bias times beta; one of [1, N] as [N], which the runtime takes into the product."""
    beta = guards.attribute(node, "beta", 1.0)
    tensor = constant_tensor(bias)
    if tensor is None or (beta == 1.0 and (len(tensor.shape) != 2 or tensor.shape[0] != 1)):
        return bias
    data = tensor.numpy()
    if data.ndim == 2 and data.shape[0] == 1:
        data = data.reshape(-1)
    return editor.constant(np.asarray(data * np.float32(beta), np.float32), f"{bias.name}_scaled")
