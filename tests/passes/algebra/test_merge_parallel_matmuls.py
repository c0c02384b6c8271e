"""Products side by side: one wider product, with a Split only for a few rows."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "merge-parallel-matmuls"
X = (2, 3, 6)


def products(*columns: int, x=X, bias=True, act=None, concat=False, gemm=None, swap=False, **kwargs):
    """MatMuls (or Gemms with attributes `gemm`) of x, with an Add and an activation each, then a Concat or a Neg each."""
    nodes, weights, ends = [], {}, []
    for i, c in enumerate(columns):
        shape = (c, x[-1]) if (gemm or {}).get("transB") else (x[-1], c)
        weights[f"w{i}"] = array(*shape, seed=i)
        biased = bias is True or (bias is None and i == 0)
        if biased:
            weights[f"b{i}"] = array(c, seed=10 + i)
        if gemm is not None:
            nodes.append(node("Gemm", ["x", f"w{i}", *([f"b{i}"] if biased else [])], [f"m{i}"], **gemm))
            ends.append(f"m{i}")
        else:
            nodes.append(node("MatMul", ["x", f"w{i}"], [f"m{i}"]))
            ends.append(f"m{i}")
            if biased:
                nodes.append(node("Add", [f"b{i}", f"m{i}"] if swap else [f"m{i}", f"b{i}"], [f"s{i}"]))
                ends[-1] = f"s{i}"
        if act:
            nodes.append(node(act, [ends[-1]], [f"a{i}"]))
            ends[-1] = f"a{i}"
    rank = len(x)
    if concat:
        nodes.append(node("Concat", ends, ["y"], axis=rank - 1 if concat is True else concat))
        outputs = {"y": [None] * rank}
    else:
        nodes += [node("Neg", [e], [f"y{i}"]) for i, e in enumerate(ends)]
        outputs = {f"y{i}": [None] * rank for i in range(len(ends))}
    return model(nodes, {"x": kwargs.pop("declared", x)}, outputs, weights, **kwargs)


def merged(before, expected, feed=X, **options):
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == expected, (ops(after), reasons(log))
    assert_same(before, after, {"x": array(*feed)})
    return after


def refused(before, reason: str, **options) -> None:
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


@pytest.mark.parametrize("x", [(6,), (3, 6), X, (2, 2, 3, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", [None, "Relu"])
def test_products_that_meet_again(x, bias, act) -> None:
    before = products(4, 5, 1, x=x, bias=bias, act=act, concat=True)
    merged(before, {"MatMul": 1} | ({"Add": 1} if bias else {}) | ({act: 1} if act else {}), x)


def test_negative_axis_and_swapped_bias() -> None:
    merged(products(4, 5, concat=-1, swap=True), {"MatMul": 1, "Add": 1})


@pytest.mark.parametrize("opset", [7, 11, 13, 18])
@pytest.mark.parametrize("act", [None, "Tanh"])
def test_split_of_a_few_rows(opset: int, act) -> None:
    merged(products(4, 5, 3, act=act, opset=opset), {"MatMul": 1, "Add": 1, "Split": 1, "Neg": 3} | ({act: 1} if act else {}))


def test_split_refused_for_many_rows() -> None:
    before = products(4, 5, x=(3, 3, 6))
    refused(before, "a Split of 9 rows would cost more")
    merged(before, {"MatMul": 1, "Add": 1, "Split": 1, "Neg": 2}, (3, 3, 6), max_rows=9)


def test_split_refused_for_an_unknown_number_of_rows() -> None:
    refused(products(4, 5, declared=["n", 3, 6]), "the number of rows is not known")


def test_rows_do_not_matter_where_there_is_no_split() -> None:
    merged(products(4, 5, concat=True, declared=["n", "m", 6]), {"MatMul": 1, "Add": 1}, (7, 30, 6))


def test_a_bias_that_only_one_has_stays_behind() -> None:
    merged(products(4, 5, bias=None), {"MatMul": 1, "Split": 1, "Add": 1, "Neg": 2})


def test_an_add_that_is_no_bias_stays_behind() -> None:
    before = products(4, 5)
    before.graph.initializer[1].CopyFrom(numpy_helper.from_array(array(2, 3, 4), "b0"))
    merged(before, {"MatMul": 1, "Split": 1, "Add": 2, "Neg": 2})


@pytest.mark.parametrize("gemm", [{}, {"transB": 1}, {"transA": 1}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1, "alpha": 2.0}])
@pytest.mark.parametrize("bias", [True, False, None])
@pytest.mark.parametrize("concat", [True, False])
def test_gemm(gemm, bias, concat) -> None:
    x = (6, 6)
    merged(products(4, 5, x=x, gemm=gemm, bias=bias, concat=concat), {"Gemm": 1} | ({} if concat else {"Split": 1, "Neg": 2}), x)


@pytest.mark.parametrize("shape", [(1, 5), (1,), ()])
def test_gemm_bias_that_broadcasts(shape) -> None:
    before = products(4, 5, x=(6, 6), gemm={}, concat=True)
    before.graph.initializer[3].CopyFrom(numpy_helper.from_array(array(*shape), "b1"))
    merged(before, {"Gemm": 1}, (6, 6))


def test_gemm_bias_per_row() -> None:
    before = products(4, 5, x=(6, 6), gemm={}, concat=True)
    before.graph.initializer[3].CopyFrom(numpy_helper.from_array(array(6, 1), "b1"))
    refused(before, "not one value a channel")


def test_unequal_attributes_are_no_match() -> None:
    before = products(4, 5, x=(6, 6), gemm={}, concat=True)
    before.graph.node[1].attribute.append(helper.make_attribute("alpha", 2.0))
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and not reasons(log)


def test_batched_weights_and_products_of_two_inputs_are_no_match() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["x", "w"], ["b"]), node("MatMul", ["x", "v"], ["c"]),
             node("MatMul", ["x", "v"], ["d"]), node("Sum", ["a", "b", "c", "d"], ["y"])]
    before = model(nodes, {"x": [2, 3, 3], "v": [3, 3]}, {"y": [None] * 3}, {"w": array(2, 3, 3)})
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and not reasons(log)


def test_overridable_weight() -> None:
    refused(products(4, 5, overridable=["w1"]), "a caller may override it")


def test_overridable_bias_stays_behind() -> None:
    before = products(4, 5, overridable=["b1"])
    merged(before, {"MatMul": 1, "Split": 1, "Add": 2, "Neg": 2})


def test_shared_weight() -> None:
    before = products(4, 5)
    before.graph.node.append(node("MatMul", ["u", "w0"], ["z"]))
    before.graph.input.append(helper.make_tensor_value_info("u", 1, [1, 6]))
    before.graph.output.append(helper.make_tensor_value_info("z", 1, [None, None]))
    refused(before, "other consumers", max_growth_bytes=10)
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    assert_same(before, after, {"x": array(*X), "u": array(1, 6)})


def test_graph_outputs_keep_their_names() -> None:
    before = products(4, 5, bias=False)
    del before.graph.node[2:]
    before.graph.node[0].output[0], before.graph.node[1].output[0] = "y0", "y1"
    merged(before, {"MatMul": 1, "Split": 1})


def test_unlike_types_are_no_match() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Cast", ["x"], ["x2"], to=11), node("MatMul", ["x2", "v"], ["b"])]
    before = model(nodes, {"x": [2, 3]}, {"a": [2, 3], "b": [2, 3]}, {"w": array(3, 3), "v": array(3, 3, dtype="float64")}, types={"b": 11})
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and not reasons(log)


def test_integers() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["x", "v"], ["b"])]
    w = np.arange(9, dtype=np.int32).reshape(3, 3)
    before = model(nodes, {"x": [2, 3]}, {"a": [2, 3], "b": [2, 3]}, {"w": w, "v": w + 1}, types=dict.fromkeys("xab", 6))
    refused(before, "not a type that can be folded")


def test_in_a_subgraph() -> None:
    inner = helper.make_graph(
        [node("MatMul", ["x", "w0"], ["m0"]), node("MatMul", ["x", "w1"], ["m1"]), node("Sub", ["m0", "m1"], ["t"])],
        "then", [], [helper.make_tensor_value_info("t", 1, None)],
    )
    other = helper.make_graph([node("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)])
    before = model(
        [node("If", ["p"], ["y"], then_branch=inner, else_branch=other)], {"x": [2, 4], "p": []}, {"y": [None] * 2},
        {"w0": array(4, 4), "w1": array(4, 4, seed=1)}, types={"p": 9},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    for p in (True, False):
        assert_same(before, after, {"x": array(2, 4), "p": np.array(p)})


def test_in_a_function_nothing_is_known_of_the_rows() -> None:
    constants = [node("Constant", [], [f"w{i}"], value=numpy_helper.from_array(array(4, 4, seed=i))) for i in range(2)]
    body = [*constants, *(node("MatMul", ["x", f"w{i}"], [f"m{i}"]) for i in range(2))]
    for end, applied in ((node("Sub", ["m0", "m1"], ["y"]), 0), (node("Concat", ["m0", "m1"], ["y"], axis=-1), 1)):
        function = helper.make_function("local", "two", ["x"], ["y"], [*body, end], [helper.make_opsetid("", 17)])
        call = helper.make_node("two", ["x"], ["y"], domain="local")
        before = model([call], {"x": [2, 4]}, {"y": [None] * 2}, functions=[function], opsets={"local": 1})
        after, log = run_pass(before, NAME)
        assert log.applied == applied, reasons(log)
        assert_same(before, after, {"x": array(2, 4)})
    assert isinstance(after, onnx.ModelProto)
