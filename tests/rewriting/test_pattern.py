"""Patterns: what matches, what is bound, what does not match."""

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import const, op, var
from tests.rewriting.graphs import load
from tests.support import array, model, node


def nodes(protos, inputs=None, initializers=None, outputs=("y",), **kwargs) -> dict[str, ir.Node]:
    graph = load(model(protos, inputs or {"x": [3]}, {name: [3] for name in outputs}, initializers, **kwargs))
    return {n.outputs[0].name: n for n in graph.graph}


def test_producers_are_matched_backwards_and_bound() -> None:
    found = nodes([node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"])])
    match = op("Neg", op(("Relu", "Abs"), var("x"), bind="inner"), bind="outer").match(found["y"])
    assert match is not None and match.root is found["y"] and match.nodes == [found["y"], found["a"]]
    assert match["inner"] is found["a"] and match["x"].name == "x" and "outer" in match and "other" not in match
    assert op("Neg", op("Abs", var())).match(found["y"]) is None
    assert op("Neg", op("Relu")).match(found["a"]) is None


def test_commutative_operators_are_tried_both_ways() -> None:
    found = nodes(
        [node("Relu", ["x"], ["a"]), node("Add", ["x", "a"], ["b"]), node("Sub", ["x", "a"], ["c"]), node("Add", ["b", "c"], ["y"])]
    )
    pattern = op("Add", op("Relu", bind="r"), var("other"), commutative=True)
    match = pattern.match(found["b"])
    assert match is not None and match["r"] is found["a"] and match["other"].name == "x"
    assert pattern.match(found["y"]) is None
    assert op("Sub", op("Relu"), var()).match(found["c"]) is None


def test_a_failed_order_leaves_no_trace() -> None:
    found = nodes([node("Relu", ["x"], ["a"]), node("Neg", ["x"], ["b"]), node("Add", ["a", "b"], ["y"])])
    match = op("Add", op("Neg", bind="n"), op("Relu", bind="r"), commutative=True).match(found["y"])
    assert match is not None and match.nodes == [found["y"], found["b"], found["a"]]
    failed = op("Add", var("first"), op("Exp"), commutative=True, bind="add")
    assert failed.match(found["y"]) is None


def test_one_name_twice_is_one_value() -> None:
    found = nodes(
        [node("Relu", ["x"], ["a"]), node("Mul", ["a", "a"], ["b"]), node("Mul", ["a", "x"], ["c"]), node("Add", ["b", "c"], ["y"])]
    )
    square = op("Mul", var("v"), var("v"))
    assert square.match(found["b"]) is not None
    assert square.match(found["c"]) is None


def test_optional_and_further_inputs() -> None:
    weights = {"low": np.float32(0), "high": np.float32(1)}
    found = nodes(
        [node("Clip", ["x"], ["a"]), node("Clip", ["a", "", "high"], ["b"]), node("Clip", ["b", "low", "high"], ["y"])],
        initializers=weights,
    )
    assert op("Clip", var("x")).match(found["a"]) is not None
    assert op("Clip", var("x")).match(found["b"]) is None  # an input that the pattern does not speak of
    assert op("Clip", var("x"), ...).match(found["b"]) is not None
    assert op("Clip").match(found["b"]) is not None
    full = op("Clip", var("x"), var("low", optional=True), const("high", optional=True))
    assert full.match(found["a"])["low"] is None
    assert full.match(found["b"])["high"].name == "high"
    assert op("Clip", var("x"), var("low"), ...).match(found["b"]) is None


def test_constants_are_initializers_and_constant_nodes_that_no_caller_overrides() -> None:
    weights = {"k": array(3), "o": array(3)}
    found = nodes(
        [
            node("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0]),
            node("Add", ["x", "k"], ["a"]),
            node("Add", ["a", "c"], ["b"]),
            node("Add", ["b", "o"], ["d"]),
            node("Add", ["d", "x"], ["y"]),
        ],
        initializers=weights,
        overridable=["o"],
    )
    pattern = op("Add", var("x"), const("c"))
    assert [name for name, n in found.items() if pattern.match(n)] == ["a", "b"]


def test_domains() -> None:
    found = nodes([node("Relu", ["x"], ["a"], domain="custom"), node("Relu", ["a"], ["y"])], opsets={"custom": 1})
    assert op("Relu").match(found["a"]) is None
    assert op("Relu", domain="custom").match(found["a"]) is not None
    assert op("Relu", domain="ai.onnx").match(found["y"]) is not None


def test_where_and_depth() -> None:
    found = nodes([node("LeakyRelu", ["x"], ["a"], alpha=0.5), node("LeakyRelu", ["a"], ["y"])])
    pattern = op("LeakyRelu", where=lambda n: "alpha" in n.attributes)
    assert pattern.match(found["a"]) is not None and pattern.match(found["y"]) is None
    assert pattern.depth == 1
    assert op("Add", op("Mul", op("Neg"), var()), op("Relu")).depth == 3
