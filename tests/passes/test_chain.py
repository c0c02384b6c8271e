"""The chain model: of nine nodes a layer three are left, whatever stands between them."""

from pathlib import Path

import onnx

from graphopt.rewriting import ChangeLog, Context
from tests.chain import chain
from tests.rewriting.graphs import load, result
from tests.support import REGISTRY, array, assert_same, ops

PASSES = ("fuse-conv-bn", "eliminate-identity", "eliminate-noop-shape-ops", "eliminate-transposes", "prune-dead-nodes")


def test_conv_relu_and_add_are_left(tmp_path: Path) -> None:
    chain(3, tmp_path / "chain.onnx")
    before = onnx.load(tmp_path / "chain.onnx")
    graph = load(before)
    context = Context(graph)
    for name in PASSES:
        context = Context(graph, ChangeLog(name), context)
        REGISTRY.get(name)().run(context)
    after = result(graph)
    assert ops(after) == {"Conv": 3, "Relu": 3, "Add": 3}
    assert_same(before, after, {"x": array(1, 8, 8, 8)}, rtol=1e-4)
