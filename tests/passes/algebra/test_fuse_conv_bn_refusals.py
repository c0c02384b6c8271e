"""BatchNormalization before which nothing is fused, or only a copy of a shared weight."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.passes.algebra.conv_bn import NAME, bn, conv_bn, params, refused
from tests.passes.algebra.test_fuse_conv_bn import branch
from tests.support import array, assert_same, model, node, ops, run_pass

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
