"""Small models for the tests of verification, as bytes."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from graphopt.verification.perturb import load

F, I, B, S, H = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING, TensorProto.FLOAT16  # noqa: E741


def info(name, dtype=F, shape=None):
    return helper.make_tensor_value_info(name, dtype, shape)


def const(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[0]}", **attributes)


def model(nodes, inputs, outputs, constants=(), functions=(), domains=None, opset=17):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (domains or {}).items())]
    made = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=list(functions))
    return made.SerializeToString()


def graph_of(data):
    return load(data)


def linear(weight, x=("N", 4), dtype=F, then=()):
    """y = x @ weight, then unary operators."""
    weight = np.asarray(weight, np.float16 if dtype == H else np.float32)
    names = ["x", *(f"t{i}" for i in range(len(then))), "y"]
    nodes = [node("MatMul", ["x", "w"], [names[1]])]
    nodes += [node(op, [names[i + 1]], [names[i + 2]]) for i, op in enumerate(then)]
    return model(nodes, [info("x", dtype, list(x))], [info("y", dtype, None)], [numpy_helper.from_array(weight, "w")])


def weight(rows=4, columns=8, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def conv_bn(folded, seed=0):
    """Conv, BatchNormalization, Relu; or the same function with the BatchNormalization folded in float32."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    scale, bias, mean = (rng.standard_normal(8).astype(np.float32) for _ in range(3))
    var = rng.uniform(0.5, 2, 8).astype(np.float32)
    inputs, outputs = [info("x", F, ["N", 3, "H", "W"])], [info("y", F, None)]
    if folded:
        gain = scale / np.sqrt(var + np.float32(1e-5))
        constants = [const("w", w * gain[:, None, None, None]), const("b", bias - mean * gain)]
        nodes = [node("Conv", ["x", "w", "b"], ["c"]), node("Relu", ["c"], ["y"])]
    else:
        constants = [const("w", w), const("s", scale), const("b", bias), const("m", mean), const("v", var)]
        nodes = [
            node("Conv", ["x", "w"], ["c"]),
            node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
            node("Relu", ["n"], ["y"]),
        ]
    return model(nodes, inputs, outputs, constants)
