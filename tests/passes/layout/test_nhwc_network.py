"""A network as tf2onnx exports it: channels last, each convolution and pooling wrapped in two Transposes."""

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.rewriting import ChangeLog, Context
from tests.passes.layout.transposes import first, last
from tests.support import REGISTRY, array, assert_same, model, node, ops

PASSES = ("move-transposes-across-functions", "eliminate-transposes", "move-transposes-across-functions", "fold-affine")


class Network:
    """Nodes and weights, as layers are added to the value `x`."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {"low": np.float32(0), "high": np.float32(6)}
        self.count = 0

    def add(self, op_type: str, *inputs: str, **attributes) -> str:
        self.count += 1
        self.nodes.append(node(op_type, list(inputs), [f"v{self.count}"], **attributes))
        return f"v{self.count}"

    def wrapped(self, op_type: str, x: str, *inputs: str, **attributes) -> str:
        self.nodes.append(first(x, f"{x}/first{self.count}"))
        y = self.add(op_type, f"{x}/first{self.count}", *inputs, **attributes)
        self.nodes.append(last(y, f"{y}/last"))
        return f"{y}/last"

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array(*shape, seed=len(self.weights)) / np.float32(np.sqrt(np.prod(shape[1:])))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> str:
        weight = self.weight(outputs, inputs // groups, kernel, kernel)
        y = self.wrapped("Conv", x, weight, kernel_shape=[kernel] * 2, strides=[stride] * 2, auto_pad="SAME_UPPER", group=groups)
        return self.add("Add", y, self.weight(outputs))

    def relu6(self, x: str) -> str:
        return self.add("Clip", x, "low", "high")

    def ints(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(values, np.int64)
        return name


def network() -> onnx.ModelProto:
    n = Network()
    x = n.relu6(n.conv(n.add("Sub", "x", n.weight(3)), 3, 8, stride=2))
    x = n.wrapped("MaxPool", n.add("Pad", x, n.ints(0, 1, 1, 0, 0, 1, 1, 0)), kernel_shape=[3, 3], strides=[2, 2])
    x = n.add("Add", x, n.conv(n.relu6(n.conv(n.relu6(n.conv(x, 8, 16, 1)), 16, 16, groups=16)), 16, 8, 1))  # inverted residual
    x = n.add("Concat", x, n.relu6(n.conv(x, 8, 4, 1)), axis=-1)
    x = n.conv(x, 12, 16, stride=2)
    squeezed = n.add("Relu", n.conv(n.add("ReduceMean", x, axes=[1, 2], keepdims=1), 16, 4, 1))
    x = n.add("Mul", x, n.add("Sigmoid", n.conv(squeezed, 4, 16, 1)))
    up = n.wrapped("Resize", x, "", "", n.ints(2, 16, 8, 8), mode="nearest")
    x = n.relu6(n.conv(n.add("Slice", up, n.ints(1, 1), n.ints(7, 7), n.ints(1, 2)), 16, 24, 1))
    mean = n.add("ReduceMean", x, axes=[1, 2], keepdims=0)
    n.nodes.append(node("MatMul", [mean, n.weight(24, 5)], ["y"]))
    return model(n.nodes, {"x": [2, 32, 32, 3]}, ["y"], n.weights)


def test_one_transpose_is_left_at_the_input() -> None:
    before = network()
    assert ops(before)["Transpose"] == 22
    graph = ir.from_proto(before)
    context = Context(graph)
    for name in PASSES:
        context = Context(graph, ChangeLog(name), context)
        REGISTRY.get(name)().run(context)
    after = ir.to_proto(graph)
    onnx.checker.check_model(after)
    counts = ops(after)
    assert counts["Transpose"] == 1 and counts["Add"] == 1 and counts["Conv"] == ops(before)["Conv"]  # the residual one
    assert [n.op_type for n in after.graph.node][:3] == ["Sub", "Transpose", "Conv"]
    assert_same(before, after, {"x": array(2, 32, 32, 3)}, rtol=1e-4)
