"""The chain model that the cost of optimizing is measured on: nine nodes a layer, all but three of them needless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def chain(layers: int, path: Path | str, channels: int = 8) -> None:
    """Write `layers` times Conv, BatchNormalization, Identity, Relu, Shape, Reshape, Transpose, Transpose, Add."""
    rng = np.random.default_rng(0)
    nodes, initializers, x = [], [], "x"
    for i in range(layers):
        weight = (rng.standard_normal((channels, channels, 1, 1)) * 0.1).astype("f4")
        initializers.append(numpy_helper.from_array(weight, f"w{i}"))
        for letter, value in zip("smgv", (1, 0, 0, 1)):
            data = (np.full(channels, value) + rng.random(channels) * 0.1).astype("f4")
            initializers.append(numpy_helper.from_array(data, f"{letter}{i}"))
        nodes += [
            helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], kernel_shape=[1, 1]),
            helper.make_node("BatchNormalization", [f"c{i}", *(f"{letter}{i}" for letter in "smgv")], [f"b{i}"]),
            helper.make_node("Identity", [f"b{i}"], [f"i{i}"]),
            helper.make_node("Relu", [f"i{i}"], [f"r{i}"]),
            helper.make_node("Shape", [f"r{i}"], [f"sh{i}"]),
            helper.make_node("Reshape", [f"r{i}", f"sh{i}"], [f"rs{i}"]),
            helper.make_node("Transpose", [f"rs{i}"], [f"t{i}"], perm=[0, 2, 3, 1]),
            helper.make_node("Transpose", [f"t{i}"], [f"tt{i}"], perm=[0, 3, 1, 2]),
            helper.make_node("Add", [f"tt{i}", x], [f"o{i}"]),
        ]
        x = f"o{i}"
    shape = [1, channels, 8, 8]
    graph = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)], initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
