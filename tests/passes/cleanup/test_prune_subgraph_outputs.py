"""Outputs of If and Loop that nothing takes, and what a Loop carries unchanged."""

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from graphopt.rewriting import ChangeLog, Context
from tests.support import REGISTRY, array, assert_same, model, node, ops, run_pass

PASS = "prune-subgraph-outputs"
X = {"x": array(2, 3)}


def info(name, dims=(2, 3), kind=1):
    return helper.make_tensor_value_info(name, kind, list(dims))


def holder(proto, kind):
    return next(n for n in proto.graph.node if n.op_type == kind)


def test_if() -> None:
    some = [node("Relu", ["x"], ["a"]), node("Neg", ["x"], ["b"]), node("Abs", ["b"], ["c"])]
    others = [node("Tanh", ["x"], ["d"]), node("Exp", ["d"], ["e"]), node("Identity", ["d"], ["f"])]
    then = helper.make_graph(some, "then", [], [*map(info, "abc")])
    other = helper.make_graph(others, "else", [], [*map(info, "def")])
    made = node("If", ["flag"], ["p", "q", "r"], then_branch=then, else_branch=other)
    before = model([made, node("Add", ["p", "r"], ["y"])], {"x": [2, 3], "flag": []}, {"y": [2, 3]}, types={"flag": TensorProto.BOOL})
    after, log = run_pass(before, PASS)
    assert log.applied == 1 and list(holder(after, "If").output) == ["p", "r"]
    pruned, _ = run_pass(after, "prune-dead-nodes")
    assert sorted(n.op_type for a in holder(pruned, "If").attribute for n in a.g.node) == ["Abs", "Identity", "Neg", "Relu", "Tanh"]
    for flag in (True, False):
        for result in (after, pruned):
            assert_same(before, result, {**X, "flag": np.asarray(flag)}, exact=True)


def loop(nodes, outputs, taken, extra=()):
    """A Loop of three rounds that carries a and b, both [2, 3]; `outputs` of the body beside the condition; `taken` of the Loop."""
    inputs = [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("a"), info("b")]
    given = [info("still", [], TensorProto.BOOL), *map(info, outputs)]
    body = helper.make_graph([node("Identity", ["go"], ["still"]), *nodes], "body", inputs, given)
    results = [f"r{i}" for i in range(len(outputs))]
    made = [
        node("Relu", ["x"], ["first"]), node("Tanh", ["x"], ["second"]),
        helper.make_node("Loop", ["three", "", "first", "second"], results, name="loop", body=body), *extra,
    ]
    return model(made, {"x": [2, 3]}, {n: [None] * (3 if n >= "r2" else 2) for n in taken}, {"three": np.asarray(3)})


def test_what_a_loop_collects() -> None:
    nodes = [node("Add", ["a", "b"], ["c"]), node("Identity", ["b"], ["d"]), node("Exp", ["c"], ["e"]), node("Neg", ["c"], ["f"])]
    before = loop(nodes, ["c", "d", "e", "f"], ["r0", "r1", "r3"])
    after, log = run_pass(before, PASS)
    assert log.applied == 1 and list(holder(after, "Loop").output) == ["r0", "r1", "r3"]
    assert_same(before, after, X, exact=True)


def test_what_a_loop_carries_unchanged() -> None:
    nodes = [node("Add", ["a", "b"], ["c"]), node("Identity", ["b"], ["d"])]
    before = loop(nodes, ["c", "d"], ["r0", "y"], [node("Neg", ["r1"], ["y"])])
    before.graph.output[1].type.tensor_type.shape.dim.pop()
    after, log = run_pass(before, PASS)
    assert log.applied == 2 and list(holder(after, "Loop").output) == ["r0"] and list(holder(after, "Loop").input) == ["three", "", "first"]
    assert_same(before, after, X, exact=True)


def test_what_a_later_round_needs_stays() -> None:
    nodes = [node("Add", ["a", "b"], ["c"]), node("Mul", ["b", "b"], ["d"])]
    before = loop(nodes, ["c", "d"], ["r0"])
    after, log = run_pass(before, PASS)
    assert log.applied == 0 and list(holder(after, "Loop").output) == ["r0", "r1"]
    assert_same(before, after, X, exact=True)


def test_outputs_of_the_graph_stay() -> None:
    nodes = [node("Add", ["a", "b"], ["c"]), node("Identity", ["b"], ["d"])]
    before = loop(nodes, ["c", "d"], ["r0", "r1"])
    after, log = run_pass(before, PASS)
    assert log.applied == 0 and ops(after) == ops(before)


def test_what_only_they_needed_is_dead_at_once() -> None:
    nodes = [node("Add", ["a", "b"], ["c"]), node("Identity", ["b"], ["d"]), node("Exp", ["c"], ["e"]), node("Neg", ["c"], ["f"])]
    graph = ir.from_proto(loop(nodes, ["c", "d", "e", "f"], ["r0", "r3"]))
    context = Context(graph)
    for name in (PASS, "prune-dead-nodes"):
        context = Context(graph, ChangeLog(name), context)
        REGISTRY.get(name)().run(context)
    body = next(n for n in graph.graph if n.op_type == "Loop").attributes["body"].as_graph()
    assert sorted(n.op_type for n in body) == ["Add", "Identity", "Neg"]
    assert_same(loop(nodes, ["c", "d", "e", "f"], ["r0", "r3"]), ir.to_proto(graph), X, exact=True)
