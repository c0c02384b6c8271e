"""Random graphs of operators that work in any layout, with Transposes strewn in: same answers, never more Transposes, a fixpoint."""

import random

import numpy as np
import onnx
import pytest

from tests.support import array, assert_same, model, node, ops, run_pass

PASSES = ("move-transposes", "move-transposes-across-functions", "eliminate-transposes", "transpose-to-reshape", "merge-reshapes")


class Graph:
    """A random graph, grown operator by operator from values of known shapes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.dims = [2, self.random.choice([1, 3]), 4, self.random.choice([1, 5])]
        self.shapes = {"x": self.dims, "z": self.dims}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def constant(self, data) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(data)
        return name

    def add(self, op_type: str, inputs: list[str], shape: list[int], **attributes) -> None:
        name = f"v{len(self.shapes)}"
        self.nodes.append(node(op_type, inputs, [name], **attributes))
        self.shapes[name] = shape

    def grow(self) -> None:
        pick = self.random
        x = pick.choice(list(self.shapes)[-6:])
        shape = self.shapes[x]
        rank = len(shape)
        axis = pick.randrange(rank) if rank else 0
        other = [*shape[:axis], *shape[axis + 1 :]]
        match pick.choice("ttttuubbbccjrrsqpgk" if rank else "ubj"):
            case "t":
                perm = pick.choice([[0, 2, 3, 1], [0, 3, 1, 2]]) if rank == 4 and pick.random() < 0.7 else pick.sample(range(rank), rank)
                self.add("Transpose", [x], [shape[i] for i in perm], perm=perm)
            case "u":
                self.add(pick.choice(["Relu", "Neg", "Sigmoid"]), [x], shape)
            case "b":
                near = [n for n, s in self.shapes.items() if len(s) == rank and all(a == b or 1 in (a, b) for a, b in zip(s, shape))]
                y = pick.choice(near)
                self.add(pick.choice(["Add", "Mul", "Max"]), [x, y], [max(a, b) for a, b in zip(shape, self.shapes[y])])
            case "c":
                start = pick.randint(0, rank)
                data = array(*(pick.choice([1, d]) for d in shape[start:]), seed=rank)
                self.add("Sub", pick.sample([x, self.constant(data)], 2), shape)
            case "j" if rank and shape[axis] < 20:
                self.add("Concat", [x, x], [*shape[:axis], 2 * shape[axis], *shape[axis + 1 :]], axis=pick.choice([axis, axis - rank]))
            case "r":
                axes, keep = pick.sample(range(rank), pick.randint(1, rank)), pick.randint(0, 1)
                left = [1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes]
                self.add(pick.choice(["ReduceMax", "ReduceMean"]), [x], left, axes=axes, keepdims=keep)
            case "s" if shape[axis] > 1:
                bounds = [self.constant([i]) for i in (1, shape[axis], axis)]
                self.add("Slice", [x, *bounds], [*shape[:axis], shape[axis] - 1, *shape[axis + 1 :]])
            case "q" if shape[axis] == 1:
                self.add("Squeeze", [x, self.constant([axis])], other)
            case "k" if rank < 5:
                self.add("Unsqueeze", [x, self.constant([axis])], [*shape[:axis], 1, *shape[axis:]])
            case "p":
                pads = [int(i == axis) for i in range(2 * rank)]
                self.add("Pad", [x, self.constant(pads)], [*shape[:axis], shape[axis] + 1, *shape[axis + 1 :]])
            case "g":
                self.add("Gather", [x, self.constant(np.int64(pick.randrange(shape[axis])))], other, axis=axis)

    def model(self) -> onnx.ModelProto:
        while len(self.nodes) < 14:
            self.grow()
        used = {n for step in self.nodes for n in step.input}
        outputs = {n: [None] * len(s) for n, s in self.shapes.items() if n not in used and n not in "xz"}
        dims = ["n", *self.dims[1:]] if self.random.random() < 0.6 else self.dims
        return model(self.nodes, {"x": dims, "z": dims}, outputs, self.weights)


@pytest.mark.parametrize("seed", range(60))
def test_random(seed: int) -> None:
    graph = Graph(seed)
    before = after = graph.model()
    for name in PASSES:
        count = ops(after)["Transpose"]
        after, _ = run_pass(after, name)
        assert ops(after)["Transpose"] <= count
        assert run_pass(after, name)[1].applied == 0
    assert_same(before, after, {"x": array(*graph.dims), "z": array(*graph.dims, seed=1)}, rtol=1e-4)
