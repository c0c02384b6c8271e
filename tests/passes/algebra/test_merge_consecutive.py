"""Convolutions and products one behind the other: merged where one computes less, biases and borders included."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

CONVS, PRODUCTS = "merge-consecutive-convs", "merge-consecutive-matmuls"
X = (2, 3, 9, 9)


def convs(first, second, *, x=X, bias=(True, True), attributes=({}, {}), **kwargs):
    """Two Convs with weights of the given shapes."""
    weights = {"w0": array(*first), "w1": array(*second, seed=1)}
    for i in (0, 1):
        if bias[i]:
            weights[f"b{i}"] = array((first, second)[i][0], seed=10 + i)
    nodes = [node("Conv", [("x", "h")[i], f"w{i}", *([f"b{i}"] if bias[i] else [])], [("h", "y")[i]], **attributes[i]) for i in (0, 1)]
    return model(nodes, {"x": x}, {"y": [None] * len(x)}, weights, **kwargs)


def merged(before, expected, *feed: int, name: str = CONVS, **options):
    after, log = run_pass(before, name, **options)
    assert ops(after) == expected, (ops(after), reasons(log))
    assert_same(before, after, {"x": array(*feed)}, rtol=5e-5)
    return after


def refused(before, reason: str, name: str = CONVS, **options) -> None:
    after, log = run_pass(before, name, **options)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


def unmatched(before, name: str = CONVS) -> None:
    after, log = run_pass(before, name)
    assert ops(after) == ops(before) and not reasons(log), reasons(log)


POINT, WIDE = (8, 3, 1, 1), (4, 8, 3, 3)


@pytest.mark.parametrize("bias", [(True, True), (True, False), (False, True), (False, False)])
def test_pointwise_first(bias) -> None:
    merged(convs(POINT, WIDE, bias=bias), {"Conv": 1}, *X)


@pytest.mark.parametrize("attributes", [{"pads": [1] * 4}, {"auto_pad": "SAME_UPPER"}, {"pads": [1] * 4, "dilations": [2, 2]}])
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_first_without_a_bias_before_padding(attributes, bias: bool) -> None:
    merged(convs(POINT, WIDE, bias=(False, bias), attributes=({}, attributes)), {"Conv": 1}, *X)


def test_strided_second() -> None:
    merged(convs((16, 3, 1, 1), (4, 16, 3, 3), attributes=({}, {"strides": [2, 2]})), {"Conv": 1}, *X)


@pytest.mark.parametrize(
    "attributes", [{"pads": [1] * 4}, {"strides": [2, 2], "pads": [1, 0, 1, 2]}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}]
)
@pytest.mark.parametrize("bias", [(True, True), (True, False), (False, True), (False, False)])
def test_pointwise_second_behind_any_padding(attributes, bias) -> None:
    merged(convs((16, 3, 3, 3), (5, 16, 1, 1), bias=bias, attributes=(attributes, {})), {"Conv": 1}, *X)


def test_two_pointwise_the_second_strided() -> None:
    merged(convs((8, 3, 1, 1), (4, 8, 1, 1), attributes=({}, {"strides": [2, 2]})), {"Conv": 1}, *X)


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int) -> None:
    x = (2, 3, *[7] * rank)
    merged(convs((8, 3, *[1] * rank), (2, 8, *[3] * rank), x=x), {"Conv": 1}, *x)


def test_a_chain_of_three() -> None:
    before = convs((16, 3, 1, 1), (12, 16, 1, 1))
    before.graph.node.append(node("Conv", ["y", "w2"], ["z"]))
    before.graph.initializer.append(numpy_helper.from_array(array(4, 12, 3, 3), "w2"))
    before.graph.output[0].name = "z"
    merged(before, {"Conv": 1}, *X)


def test_bias_before_padding() -> None:
    refused(convs(POINT, WIDE, attributes=({}, {"pads": [1] * 4})), "the convolution pads")
    refused(convs(POINT, WIDE, attributes=({}, {"auto_pad": "SAME_LOWER"})), "the convolution pads")


def test_a_bias_of_zeros_before_padding() -> None:
    before = convs(POINT, WIDE, attributes=({}, {"pads": [1] * 4}))
    next(t for t in before.graph.initializer if t.name == "b0").CopyFrom(numpy_helper.from_array(np.zeros(8, "f"), "b0"))
    merged(before, {"Conv": 1}, *X)


def test_no_less_to_compute() -> None:
    refused(convs((3, 8, 1, 1), (8, 3, 3, 3), x=(1, 8, 9, 9)), "as much as the two")
    refused(convs((3, 8, 1, 1), (8, 3, 1, 1), x=(1, 8, 9, 9)), "as much as the two")


def test_a_product_of_weights_that_takes_too_long() -> None:
    refused(convs(POINT, WIDE), "multiply-adds", max_work=0)
    refused(products(), "multiply-adds", PRODUCTS, max_work=0)


def test_neither_looks_at_one_place() -> None:
    unmatched(convs((8, 3, 3, 3), (4, 8, 3, 3)))
    unmatched(convs(POINT, WIDE, attributes=({"strides": [2, 2]}, {})))
    unmatched(convs(POINT, WIDE, attributes=({"pads": [1] * 4}, {})))


def test_groups() -> None:
    refused(convs((8, 4, 1, 1), (4, 8, 1, 1), x=(1, 8, 9, 9), attributes=({"group": 2}, {})), "grouped")
    refused(convs(POINT, (8, 1, 3, 3), attributes=({}, {"group": 8})), "grouped")


def test_used_elsewhere() -> None:
    before = convs(POINT, WIDE)
    before.graph.node.append(node("Neg", ["h"], ["z"]))
    before.graph.output.append(helper.make_tensor_value_info("z", 1, [None] * 4))
    refused(before, "has 2 consumers")
    before = convs(POINT, WIDE)
    before.graph.output.append(helper.make_tensor_value_info("h", 1, [None] * 4))
    refused(before, "also a graph output")


def test_overridable_weights() -> None:
    refused(convs(POINT, WIDE, overridable=["w0"]), "a caller may override it")
    refused(convs(POINT, WIDE, overridable=["b1"]), "a caller may override it")


def test_shared_weight() -> None:
    before = convs((8, 8, 1, 1), (8, 8, 1, 1), x=(1, 8, 5, 5))
    before.graph.node[1].input[1] = "w0"
    refused(before, "other consumers", max_growth_bytes=10)
    merged(before, {"Conv": 1}, 1, 8, 5, 5)


def test_a_captured_output() -> None:
    inner = helper.make_graph([node("Neg", ["h"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([node("Abs", ["h"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)])
    before = convs(POINT, WIDE, types={"p": 9})
    before.graph.node.append(node("If", ["p"], ["z"], then_branch=inner, else_branch=other))
    before.graph.input.append(helper.make_tensor_value_info("p", 9, []))
    before.graph.output.append(helper.make_tensor_value_info("z", 1, [None] * 4))
    refused(before, "captured by a subgraph")


def test_an_empty_bias() -> None:
    before = convs(POINT, WIDE, bias=(False, False))
    for n in before.graph.node:
        n.input.append("")
    merged(before, {"Conv": 1}, *X)


def test_weights_that_overflow() -> None:
    before = convs(POINT, WIDE, bias=(False, False))
    for t in list(before.graph.initializer):
        t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(1e25), t.name))
    refused(before, "would not be finite")


def _inside(kind: str, body, feed, name: str) -> None:
    weights = {"w0": array(8, 3, 1, 1), "w1": array(4, 8, 3, 3)} if name == CONVS else {"w0": array(3, 8), "w1": array(8, 4)}
    if kind == "function":
        constants = [node("Constant", [], [k], value=numpy_helper.from_array(v)) for k, v in weights.items()]
        function = helper.make_function("local", "two", ["x"], ["y"], [*constants, *body], [helper.make_opsetid("", 17)])
        call = helper.make_node("two", ["x"], ["y"], domain="local")
        before = model([call], {"x": feed}, {"y": [None] * len(feed)}, functions=[function], opsets={"local": 1})
        inputs = {}
    else:
        inner = helper.make_graph(body, "then", [], [helper.make_tensor_value_info("y", 1, None)])
        other = helper.make_graph([node("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)])
        before = model(
            [node("If", ["p"], ["z"], then_branch=inner, else_branch=other)], {"x": feed, "p": []}, {"z": [None] * len(feed)}, weights,
            types={"p": 9},
        )
        inputs = {"p": np.array(True)}
    after, log = run_pass(before, name)
    assert log.applied == 1, reasons(log)
    assert_same(before, after, {"x": array(*feed), **inputs}, rtol=5e-5)


@pytest.mark.parametrize("kind", ["function", "subgraph"])
def test_convs_inside(kind: str) -> None:
    _inside(kind, [node("Conv", ["x", "w0"], ["h"]), node("Conv", ["h", "w1"], ["y"])], X, CONVS)


@pytest.mark.parametrize("kind", ["function", "subgraph"])
def test_products_inside(kind: str) -> None:
    _inside(kind, [node("MatMul", ["x", "w0"], ["h"]), node("MatMul", ["h", "w1"], ["y"])], (2, 3), PRODUCTS)


def test_a_parameter_of_a_function_decides_the_padding() -> None:
    body = [node("Conv", ["x", "w0"], ["h"]), node("Conv", ["h", "w1"], ["y"])]
    a = body[1].attribute.add()
    a.name, a.ref_attr_name, a.type = "pads", "p", onnx.AttributeProto.INTS
    constants = [node("Constant", [], [k], value=numpy_helper.from_array(v)) for k, v in (("w0", array(*POINT)), ("w1", array(8, 8, 1, 1)))]
    function = helper.make_function("local", "two", ["x"], ["y"], [*constants, *body], [helper.make_opsetid("", 17)], attributes=["p"])
    call = helper.make_node("two", ["x"], ["y"], domain="local", p=[1, 1, 1, 1])
    before = model([call], {"x": X}, {"y": [None] * 4}, functions=[function], opsets={"local": 1})
    after, log = run_pass(before, CONVS)
    assert log.applied == 0 and "parameter of the function" in reasons(log)[0]
    assert_same(before, after, {"x": array(*X)}, exact=True)


# --- products ---------------------------------------------------------------------------------------------------------


def products(k=6, n=10, m=4, *, x=(2, 3, 6), bias=(False, False), gemm=(None, None), **kwargs):
    """Two MatMuls, or Gemms where `gemm` holds attributes, with Adds of a bias behind MatMuls."""
    nodes, weights, value = [], {}, "x"
    for i, (rows, columns) in enumerate(((k, n), (n, m))):
        attributes = gemm[i]
        weights[f"w{i}"] = array(*((columns, rows) if (attributes or {}).get("transB") else (rows, columns)), seed=i)
        if bias[i]:
            weights[f"b{i}"] = array(columns, seed=10 + i)
        if attributes is None:
            nodes.append(node("MatMul", [value, f"w{i}"], [f"m{i}"]))
            value = f"m{i}"
            if bias[i]:
                nodes.append(node("Add", [f"b{i}", value], [f"s{i}"]))
                value = f"s{i}"
        else:
            nodes.append(node("Gemm", [value, f"w{i}", *([f"b{i}"] if bias[i] else [])], [f"m{i}"], **attributes))
            value = f"m{i}"
    nodes[-1].output[0] = "y"
    return model(nodes, {"x": x}, {"y": [None] * len(x)}, weights, **kwargs)


@pytest.mark.parametrize("bias", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("x", [(6,), (3, 6), (2, 3, 6)])
def test_matmuls(bias, x) -> None:
    merged(products(x=x, bias=bias), {"MatMul": 1} | ({"Add": 1} if any(bias) else {}), *x, name=PRODUCTS)


@pytest.mark.parametrize("bias", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(
    "gemm",
    [({}, {}), ({"transB": 1}, {"alpha": 2.0, "beta": 0.5}), ({"transA": 1, "alpha": 0.5}, {"transB": 1}),
     (None, {}), ({"beta": 3.0}, None)],
)
def test_gemms(bias, gemm) -> None:
    merged(products(x=(6, 6), bias=bias, gemm=gemm), {"Gemm": 1}, 6, 6, name=PRODUCTS)


def test_matmul_refusals() -> None:
    refused(products(10, 2, 10, x=(3, 10)), "as much as the two", PRODUCTS)
    before = products()
    before.graph.output.append(helper.make_tensor_value_info("m0", 1, [None] * 3))
    refused(before, "also a graph output", PRODUCTS)
    before = products(x=(6, 6), n=6, gemm=({}, {"transA": 1}))
    refused(before, "transposes its input", PRODUCTS)
    refused(products(x=(6, 6), gemm=({}, {}), overridable=["w1"]), "a caller may override it", PRODUCTS)
    refused(_shared(), "other consumers", PRODUCTS, max_growth_bytes=10)


def _shared():
    before = products(6, 6, 6)
    before.graph.node[1].input[1] = "w0"
    return before


def test_an_add_that_is_no_bias() -> None:
    before = products(bias=(True, False))
    next(t for t in before.graph.initializer if t.name == "b0").CopyFrom(numpy_helper.from_array(array(2, 3, 10), "b0"))
    refused(before, "not one value a channel", PRODUCTS)


def test_batched_and_overridable_matrices_are_no_match() -> None:
    unmatched(products(overridable=["w1"]), PRODUCTS)
    before = products()
    before.graph.initializer[1].CopyFrom(numpy_helper.from_array(array(2, 10, 4), "w1"))
    refused(before, "not a matrix", PRODUCTS)


def test_a_chain_of_products() -> None:
    before = products(bias=(True, True))
    before.graph.node.append(node("MatMul", ["y", "w2"], ["z"]))
    before.graph.initializer.append(numpy_helper.from_array(array(4, 3), "w2"))
    before.graph.output[0].name = "z"
    merged(before, {"MatMul": 1, "Add": 1}, 2, 3, 6, name=PRODUCTS)
