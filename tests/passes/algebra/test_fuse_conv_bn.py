"""BatchNormalization fused into what stands before it: operators, types, opsets, scopes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.passes.algebra.conv_bn import NAME, bn, conv_bn, params, refused
from tests.support import array, assert_same, model, node, ops, run_pass

# --- what folds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 21, 24])
def test_opsets(opset: int) -> None:
    before = conv_bn(opset=opset, bn_attributes={"epsilon": 0.01})
    after, log = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert log.applied == 1
    assert log.refusals == []
    if opset <= 23:
        assert_same(before, after, {"x": array(2, 3, 6, 6)})


@pytest.mark.parametrize("bias", [None, "", "k"])
def test_missing_empty_and_present_bias(bias: str | None) -> None:
    inputs = ["x", "w"] + ([] if bias is None else [bias])
    weights = {"w": array(4, 3, 3, 3), **({"k": array(4, seed=9)} if bias else {})}
    before = conv_bn(inputs, weights)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert_same(before, after, {"x": array(2, 3, 6, 6)})


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_ranks_and_groups(rank: int, op: str, group: int) -> None:
    size, kernel = [5] * rank, [3] * rank
    dims = [8, 4 // group] if op == "Conv" else [4, 8 // group]
    extra = {"strides": [2] * rank, "pads": [1] * (2 * rank)}
    before = conv_bn(["x", "w", "k"], {"w": array(*dims, *kernel), "k": array(8)}, x=(2, 4, *size), channels=8, op=op, group=group, **extra)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {op: 1}
    assert_same(before, after, {"x": array(2, 4, *size)})


@pytest.mark.parametrize("extra", [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}, {"dilations": [2, 2]}, {"pads": [0, 1, 2, 3]}])
def test_padding_does_not_matter(extra) -> None:
    before = conv_bn(**extra)
    after, _ = run_pass(before, NAME)
    assert_same(before, after, {"x": array(2, 3, 6, 6)})
    assert {a.name for a in after.graph.node[0].attribute} >= set(extra)


@pytest.mark.parametrize("dims", [None, (), (1,), (4,), (1, 4), (1, 1)])
@pytest.mark.parametrize("trans", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(dims, trans) -> None:
    trans_a, trans_b = trans
    weights = {"w": array(*((4, 5) if trans_b else (5, 4)))} | ({} if dims is None else {"k": array(*dims, seed=5)})
    shape = (5, 3) if trans_a else (3, 5)
    before = conv_bn(["x", "w", *weights.keys() - {"w"}], weights, x=shape, op="Gemm", alpha=0.5, beta=2.0, transA=trans_a, transB=trans_b)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Gemm": 1}
    assert_same(before, after, {"x": array(*shape)})


def test_matmul_becomes_gemm_with_the_bias() -> None:
    before = conv_bn(weights={"w": array(5, 4)}, x=(3, 5), op="MatMul")
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Gemm": 1}
    assert_same(before, after, {"x": array(3, 5)})


@pytest.mark.parametrize("order", [["c", "k"], ["k", "c"]])
@pytest.mark.parametrize("dims", [(4,), (1, 4), (1,), ()])
def test_matmul_and_add_stay_two(order, dims) -> None:
    before = model(
        [node("MatMul", ["x", "w"], ["c"]), node("Add", order, ["d"]), bn("d", "y")],
        {"x": ["n", 5]},
        {"y": ["n", 4]},
        {"w": array(5, 4), "k": array(*dims, seed=7), **params(4)},
    )
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"MatMul": 1, "Add": 1}
    assert_same(before, after, {"x": array(3, 5)})


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_types(dtype: int) -> None:
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    before = conv_bn(weights={"w": array(5, 4)}, x=(3, 5), op="Gemm", dtype=dtype)  # the runtime has no Conv in double precision
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Gemm": 1}
    assert {t.data_type for t in after.graph.initializer} == {dtype}
    tolerance = {TensorProto.FLOAT16: 5e-3, TensorProto.FLOAT: 1e-5, TensorProto.DOUBLE: 1e-13}[dtype]
    assert_same(before, after, {"x": array(3, 5).astype(kind)}, rtol=tolerance)


def test_bfloat16() -> None:
    before = conv_bn(dtype=TensorProto.BFLOAT16, opset=22)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    found = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in after.graph.initializer}
    old = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in before.graph.initializer}
    mul = old["s"] / np.sqrt(old["v"] + 1e-5)
    np.testing.assert_allclose(found["w_folded"], old["w"] * mul[:, None, None, None], rtol=2**-8)


def test_mixed_types_of_opset_15() -> None:
    weights = {"w": array(4, 3, 3, 3, dtype="float16"), **params(4)}
    before = model(
        [node("Conv", ["x", "w"], ["c"]), bn("c", "y")],
        {"x": [2, 3, 6, 6]},
        {"y": [2, 4, 4, 4]},
        weights,
        types={"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16},
        opset=15,
    )
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert {t.data_type for t in after.graph.initializer} == {TensorProto.FLOAT16}


def test_constant_nodes_and_output_names() -> None:
    constants = [node("Constant", [], [k], value=numpy_helper.from_array(v)) for k, v in {"w": array(4, 3, 3, 3), **params(4)}.items()]
    before = model(
        [*constants, node("Conv", ["x", "w"], ["c"]), bn("c", "t"), node("Relu", ["t"], ["y"])],
        {"x": ["n", 3, 6, 6]},
        {"y": ["n", 4, 4, 4]},
    )
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1, "Relu": 1}
    assert after.graph.node[0].output[0] == "t"
    assert_same(before, after, {"x": array(2, 3, 6, 6)})


def test_denormals_are_flushed() -> None:
    before = conv_bn(weights={"w": np.concatenate([array(4, 3, 3, 2), np.full((4, 3, 3, 1), 1.2e-38, np.float32)], axis=3)})
    for tensor in before.graph.initializer:
        if tensor.name == "s":
            tensor.CopyFrom(numpy_helper.from_array(np.float32([0.1, 0.2, 0.3, 0.4]), "s"))
    after, _ = run_pass(before, NAME)
    weight = numpy_helper.to_array(next(t for t in after.graph.initializer if t.name == "w_folded"))
    assert not ((weight != 0) & (np.abs(weight) < np.finfo(np.float32).tiny)).any()
    assert_same(before, after, {"x": array(2, 3, 6, 6)})


def branch(name: str, nodes, out: str, **kwargs) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, 1, None)], **kwargs)


def test_inside_subgraphs_with_outer_and_inner_weights() -> None:
    inner = [numpy_helper.from_array(array(4, 3, 3, 3, seed=3), "w2")]
    then = branch("then", [node("Conv", ["x", "w"], ["c1"]), bn("c1", "t")], "t")
    other = branch("else", [node("Conv", ["x", "w2"], ["c2"]), bn("c2", "e")], "e", initializer=inner)
    before = model(
        [node("If", ["cond"], ["y"], then_branch=then, else_branch=other)],
        {"x": [2, 3, 6, 6], "cond": []},
        {"y": [2, 4, 4, 4]},
        {"w": array(4, 3, 3, 3), **params(4)},
        types={"cond": TensorProto.BOOL},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 2
    for cond in (True, False):
        assert_same(before, after, {"x": array(2, 3, 6, 6), "cond": np.asarray(cond)})


def function(nodes, inputs=("x",), attributes=()) -> onnx.FunctionProto:
    return helper.make_function("local", "Block", list(inputs), ["y"], nodes, [helper.make_opsetid("", 17)], list(attributes))


def test_inside_functions() -> None:
    constants = [node("Constant", [], [k], value=numpy_helper.from_array(v)) for k, v in {"w": array(4, 3, 3, 3), **params(4)}.items()]
    before = model(
        [helper.make_node("Block", ["x"], ["y"], domain="local")],
        {"x": [2, 3, 6, 6]},
        {"y": [2, 4, 4, 4]},
        functions=[function([*constants, node("Conv", ["x", "w"], ["c"]), bn("c", "y")])],
        opsets={"local": 1},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    assert [n.op_type for n in after.functions[0].node].count("BatchNormalization") == 0
    assert_same(before, after, {"x": array(2, 3, 6, 6)})


def test_a_weight_that_a_functions_caller_gives() -> None:
    names = ["x", "w", *"sbmv"]
    before = model(
        [helper.make_node("Block", names, ["y"], domain="local")],
        {"x": [2, 3, 6, 6]},
        {"y": [2, 4, 4, 4]},
        {"w": array(4, 3, 3, 3), **params(4)},
        functions=[function([node("Conv", ["x", "w"], ["c"]), bn("c", "y")], names)],
        opsets={"local": 1},
    )
    refused(before, "not constant", {"x": array(2, 3, 6, 6)})


def test_an_attribute_that_a_functions_caller_gives() -> None:
    constants = [node("Constant", [], [k], value=numpy_helper.from_array(v)) for k, v in {"w": array(4, 3, 3, 3), **params(4)}.items()]
    norm = bn("c", "y")
    norm.attribute.add(name="epsilon", ref_attr_name="eps", type=onnx.AttributeProto.FLOAT)
    before = model(
        [helper.make_node("Block", ["x"], ["y"], domain="local", eps=0.1)],
        {"x": [2, 3, 6, 6]},
        {"y": [2, 4, 4, 4]},
        functions=[function([*constants, node("Conv", ["x", "w"], ["c"]), norm], attributes=["eps"])],
        opsets={"local": 1},
    )
    refused(before, "epsilon is a parameter of the function", {"x": array(2, 3, 6, 6)})
