"""Small models to calibrate."""

import numpy as np
import onnx
import onnx_ir as ir

from tests.support import array, model, node


def dense() -> ir.Model:
    """x [N, 4] -> MatMul -> h -> Relu -> r -> Softmax -> y."""
    return ir.from_proto(dense_proto())


def dense_proto() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("Softmax", ["r"], ["y"], axis=-1)]
    return model(nodes, {"x": ["N", 4]}, {"y": ["N", 6]}, {"w": array(4, 6, seed=4)})


def two_inputs() -> ir.Model:
    return ir.from_proto(model([node("Add", ["x", "z"], ["y"])], {"x": ["N", 4], "z": ["N", 4]}, {"y": ["N", 4]}))


def chain(length: int, width: int = 64) -> ir.Model:
    """x [N, width] -> MatMul -> t0 -> Tanh -> t1 -> MatMul -> t2 -> ..."""
    nodes, weights, last = [], {}, "x"
    for i in range(length):
        if i % 2:
            nodes.append(node("Tanh", [last], [f"t{i}"]))
        else:
            weights[f"w{i}"] = array(width, width, seed=i) / np.float32(np.sqrt(width) / 2)
            nodes.append(node("MatMul", [last, f"w{i}"], [f"t{i}"]))
        last = f"t{i}"
    nodes.append(node("Identity", [last], ["y"]))
    return ir.from_proto(model(nodes, {"x": ["N", width]}, {"y": ["N", width]}, weights))
