"""Conv and BatchNormalization: every form that folds, and every one that must not."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "fuse-conv-bn"


def params(channels: int, prefix: str = "", dtype: str = "float32", seed: int = 0) -> dict[str, np.ndarray]:
    return {
        f"{prefix}s": array(channels, seed=seed + 1, low=0.5, dtype=dtype),
        f"{prefix}b": array(channels, seed=seed + 2, dtype=dtype),
        f"{prefix}m": array(channels, seed=seed + 3, dtype=dtype),
        f"{prefix}v": array(channels, seed=seed + 4, low=0.1, dtype=dtype),
    }


def bn(x: str, y: str, prefix: str = "", **attributes) -> onnx.NodeProto:
    return node(
        "BatchNormalization",
        [x, *(f"{prefix}{p}" for p in "sbmv")],
        attributes.pop("outputs", [y]),
        name=attributes.pop("name", "bn"),
        **attributes,
    )


def conv_bn(inputs=("x", "w"), weights=None, *, x=(2, 3, 6, 6), channels=4, opset=17, bn_attributes=None, op="Conv", dtype=1, **attributes):
    weights = {"w": array(4, 3, 3, 3)} if weights is None else weights
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weights = {k: v.astype(kind) for k, v in (weights | params(channels)).items()}
    return model(
        [node(op, list(inputs), ["c"], **attributes), bn("c", "y", **(bn_attributes or {}))],
        {"x": x},
        {"y": [None] * len(x)},
        weights,
        opset=opset,
        types={"x": dtype, "y": dtype},
    )


def refused(before: onnx.ModelProto, reason: str, feeds=None, **options) -> None:
    """The pass leaves the model alone and says why."""
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before)
    assert log.applied == 0
    assert any(reason in r for r in reasons(log)), reasons(log)
    if feeds:
        assert_same(before, after, feeds, exact=True)


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


# --- shared weights -----------------------------------------------------------------------------------------------


def twice(size: int = 3, second: str = "q", extra=()) -> onnx.ModelProto:
    return model(
        [
            node("Conv", ["x", "w", "k"], ["c1"]),
            bn("c1", "y1"),
            node("Conv", ["x2", "w", "k"], ["c2"]),
            bn("c2", "y2", second, name="bn2"),
            *extra,
        ],
        {"x": [2, 3, 6, 6], "x2": [2, 3, 6, 6]},
        ["y1", "y2", *(n.output[0] for n in extra)],
        {"w": array(4, 3, size, size), "k": array(4), **params(4), **params(4, "q", seed=10)},
    )


FEEDS = {"x": array(2, 3, 6, 6), "x2": array(2, 3, 6, 6, seed=8)}


def test_a_shared_weight_gets_a_copy_for_each_norm() -> None:
    before = twice()
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 2}
    assert len({n.input[1] for n in after.graph.node}) == 2
    assert_same(before, after, FEEDS)


def test_a_shared_weight_stays_for_its_other_consumer() -> None:
    before = twice(extra=[node("ReduceSum", ["w"], ["z"], keepdims=0)])
    after, _ = run_pass(before, NAME)
    assert "w" in {t.name for t in after.graph.initializer}
    assert_same(before, after, FEEDS)


def test_copies_of_large_weights_are_refused() -> None:
    before = twice()
    refused(twice(), "would add 432 bytes", FEEDS, max_growth_bytes=431)
    after, _ = run_pass(before, NAME, max_growth_bytes=432)
    assert ops(after) == {"Conv": 2}


def test_one_layer_called_twice_costs_no_copy() -> None:
    before = twice(second="")
    after, _ = run_pass(before, NAME, max_growth_bytes=0)
    assert ops(after) == {"Conv": 2}
    assert len({(n.input[1], n.input[2]) for n in after.graph.node}) == 1
    assert "w" not in {t.name for t in after.graph.initializer}
    assert_same(before, after, FEEDS)


# --- what must not fold -------------------------------------------------------------------------------------------


def test_training_mode() -> None:
    before = conv_bn(bn_attributes={"training_mode": 1, "outputs": ["y", "mean", "var"]})
    refused(before, "training mode", {"x": array(2, 3, 6, 6)})


def test_outputs_that_mean_training_before_opset_14() -> None:
    before = conv_bn(opset=9, bn_attributes={"outputs": ["y", "mean", "var", "sm", "sv"]})
    refused(before, "training mode")


def test_is_test_of_opset_6() -> None:
    refused(conv_bn(opset=6), "training mode")
    after, _ = run_pass(conv_bn(opset=6, bn_attributes={"is_test": 1}), NAME)
    assert ops(after) == {"Conv": 1}


def test_norm_of_each_place() -> None:
    dims = {k: np.ones((4, 4, 4), np.float32) for k in "sbmv"}
    before = model(
        [node("Conv", ["x", "w"], ["c"]), bn("c", "y", spatial=0)],
        {"x": [2, 3, 6, 6]},
        {"y": [2, 4, 4, 4]},
        {"w": array(4, 3, 3, 3), **dims},
        opset=7,
    )
    refused(before, "each place by itself")


@pytest.mark.parametrize("name", ["w", "s", "b", "m", "v"])
def test_overridable_initializers(name: str) -> None:
    before = model(
        [node("Conv", ["x", "w"], ["c"]), bn("c", "y")],
        {"x": [2, 3, 6, 6]},
        ["y"],
        {"w": array(4, 3, 3, 3), **params(4)},
        overridable=[name],
    )
    refused(before, "a caller may override it", {"x": array(2, 3, 6, 6)})


def test_computed_weight() -> None:
    before = model(
        [node("Relu", ["p"], ["w"]), node("Conv", ["x", "w"], ["c"]), bn("c", "y")],
        {"x": [2, 3, 6, 6], "p": [4, 3, 3, 3]},
        ["y"],
        params(4),
    )
    refused(before, "'w' is not constant")


def test_computed_bias() -> None:
    before = model(
        [node("Relu", ["p"], ["k"]), node("Conv", ["x", "w", "k"], ["c"]), bn("c", "y")],
        {"x": [2, 3, 6, 6], "p": [4]},
        ["y"],
        {"w": array(4, 3, 3, 3), **params(4)},
    )
    refused(before, "the bias 'k' is not constant")


def test_quantized_weight() -> None:
    weights = {"q": np.ones((4, 3, 3, 3), np.int8), "qs": np.float32(0.1), **params(4)}
    before = model(
        [node("DequantizeLinear", ["q", "qs"], ["w"]), node("Conv", ["x", "w"], ["c"]), bn("c", "y")], {"x": [2, 3, 6, 6]}, ["y"], weights
    )
    refused(before, "the weight is quantized")


def test_second_consumer_and_graph_output() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), bn("c", "y"), node("Relu", ["c"], ["z"])]
    weights = {"w": array(4, 3, 3, 3), **params(4)}
    refused(model(nodes, {"x": [2, 3, 6, 6]}, ["y", "z"], weights), "2 consumers")
    refused(model(nodes[:2], {"x": [2, 3, 6, 6]}, ["y", "c"], weights), "also a graph output")


def test_captured_by_a_subgraph() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        bn("c", "y"),
        node(
            "If",
            ["cond"],
            ["z"],
            then_branch=branch("t", [node("Relu", ["c"], ["t1"])], "t1"),
            else_branch=branch("e", [node("Neg", ["c"], ["e1"])], "e1"),
        ),
    ]
    before = model(
        nodes,
        {"x": [2, 3, 6, 6], "cond": []},
        {"y": [2, 4, 4, 4], "z": [2, 4, 4, 4]},
        {"w": array(4, 3, 3, 3), **params(4)},
        types={"cond": 9},
    )
    refused(before, "captured by a subgraph")


def test_norm_in_a_subgraph_of_a_conv_outside() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node(
            "If",
            ["cond"],
            ["y"],
            then_branch=branch("t", [bn("c", "t1")], "t1"),
            else_branch=branch("e", [node("Neg", ["x"], ["e1"])], "e1"),
        ),
    ]
    before = model(nodes, {"x": [2, 3, 6, 6], "cond": []}, {"y": None}, {"w": array(4, 3, 3, 3), **params(4)}, types={"cond": 9})
    refused(before, "different graphs")


def test_gemm_with_a_bias_for_each_row() -> None:
    for dims in ((3, 4), (3, 1)):
        refused(conv_bn(["x", "w", "k"], {"w": array(5, 4), "k": array(*dims)}, x=(3, 5), op="Gemm"), "not one value a channel")


def test_matmul_of_rank_3() -> None:
    before = conv_bn(weights={"w": array(5, 7)}, x=(2, 4, 5), op="MatMul")
    refused(before, "channels are on axis 1", {"x": array(2, 4, 5)})


def test_matmul_of_unknown_rank() -> None:
    nodes = [helper.make_node("Opaque", ["x"], ["t"], domain="custom"), node("MatMul", ["t", "w"], ["c"]), bn("c", "y")]
    before = model(nodes, {"x": [3, 5]}, {"y": [3, 4]}, {"w": array(5, 4), **params(4)}, opsets={"custom": 1})
    refused(before, "rank of the product is not known")


def test_variance_below_minus_epsilon() -> None:
    before = conv_bn()
    for tensor in before.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(numpy_helper.from_array(np.float32([1, 1, -0.5, 1]), "v"))
    refused(before, "not positive")


@pytest.mark.parametrize(
    ("dtype", "scale", "reason"),
    [("float16", 6e4, "not be finite"), ("float16", 1e-4, "too small for its type"), ("float32", 1e-38, "too small")],
)
def test_weights_that_leave_the_range_of_their_type(dtype: str, scale: float, reason: str) -> None:
    weights = {"w": array(4, 3, 3, 3) * 0.01 + 1e-3 if scale < 1 else array(4, 3, 3, 3) * 10, **params(4)}
    weights |= {"s": np.full(4, scale), "v": np.ones(4)}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    before = model(
        [node("Conv", ["x", "w"], ["c"]), bn("c", "y")],
        {"x": [2, 3, 6, 6]},
        {"y": [2, 4, 4, 4]},
        {k: v.astype(dtype) for k, v in weights.items()},
        types={"x": kind, "y": kind},
    )
    refused(before, reason)


def test_a_dead_channel_does_not_hold_the_rest_back() -> None:
    weights = {"w": array(4, 3, 3, 3), **params(4)} | {"s": np.float32([1, 1e-42, 0, 1])}
    before = model([node("Conv", ["x", "w"], ["c"]), bn("c", "y")], {"x": [2, 3, 6, 6]}, ["y"], weights)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert_same(before, after, {"x": array(2, 3, 6, 6)})


def test_parameters_of_another_size() -> None:
    before = onnx.ModelProto.FromString(conv_bn().SerializeToString())
    for tensor in before.graph.initializer:
        if tensor.name == "s":
            tensor.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    refused(before, "does not fit the 4 channels")


def test_integer_matmul_is_no_match_for_floats() -> None:
    before = model(
        [node("MatMul", ["x", "w"], ["c"]), node("Cast", ["c"], ["f"], to=1), bn("f", "y")],
        {"x": [3, 5]},
        ["y"],
        {"w": np.ones((5, 4), np.int32), **params(4)},
        types={"x": TensorProto.INT32},
    )
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before)
    assert log.refusals == []
