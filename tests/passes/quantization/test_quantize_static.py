"""Products on integers: the arithmetic against numpy, the kernels of the runtime, what is shared, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from graphopt.calibration import Calibration
from graphopt.measurement import Target, final_graph, integer_kernels
from graphopt.rewriting import ChangeLog, Context
from graphopt.rewriting.context import Tools
from tests.support import REGISTRY, array, drop_inferred, model, node, ops, reasons, session

NAME = "quantize-static"
DEFAULT_ISA = "avx512-vnni"


def quantize(proto: onnx.ModelProto, samples, *, isa: str = DEFAULT_ISA, allow=None, **options) -> tuple[onnx.ModelProto, ChangeLog]:
    graph = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    log = ChangeLog(NAME, allow)
    tools = Tools(Calibration.open(samples, graph), Target("cpu", "test", 1, isa))
    REGISTRY.get(NAME).configure({k.replace("_", "-"): v for k, v in options.items()}).run(Context(graph, log, tools=tools))
    drop_inferred(graph)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made)
    return made, log


def data(*shape: int, count: int = 6, low: float | None = None) -> list[np.ndarray]:
    return [array(*shape, seed=50 + i, low=low) for i in range(count)]


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def kernels(proto: onnx.ModelProto) -> dict[str, int]:
    return integer_kernels(final_graph(proto.SerializeToString(), threads=1))


def snr(before: onnx.ModelProto, after: onnx.ModelProto, feeds) -> float:
    feeds = feeds if isinstance(feeds, dict) else {"x": feeds}
    a, b = session(before).run(None, feeds)[0], session(after).run(None, feeds)[0]
    assert a.shape == b.shape
    return float(10 * np.log10((a.astype(np.float64) ** 2).sum() / ((a.astype(np.float64) - b) ** 2).sum()))


def product(op: str = "Conv", *, bias: bool = True, opset: int = 17, **attributes) -> onnx.ModelProto:
    """x -> product -> p -> Sigmoid -> Exp -> y, so that the result of the product is read in float."""
    shapes = {
        "Conv": ([1, 4, 6, 6], (8, 4, 3, 3)), "ConvTranspose": ([1, 4, 6, 6], (4, 8, 3, 3)),
        "Gemm": ([5, 4], (4, 8)), "MatMul": ([2, 5, 4], (4, 8)),
    }  # fmt: skip
    x, w = shapes[op]
    if attributes.get("transB"):
        w = w[::-1]
    weights = {"w": array(*w, seed=1) * np.exp(array(w[0], *[1] * (len(w) - 1), seed=2))}
    inputs = ["x", "w"]
    if bias and op != "MatMul":
        weights["b"] = array(8, seed=3)
        inputs.append("b")
    return model([node(op, inputs, ["p"], **attributes), node("Exp", ["p"], ["y"])], {"x": x}, {"y": None}, weights, opset=opset)


def test_conv_is_integer_arithmetic() -> None:
    """The result is that of sums of products of the stored integers, worked out here in int64."""
    before = product("Conv")
    after, log = quantize(before, data(1, 4, 6, 6), method="min-max")
    assert log.applied == 1
    c = constants(after)
    assert (c["w_int8"].dtype, c["b_int32"].dtype, c["x_zero_point"].dtype) == (np.int8, np.int32, np.uint8)
    seen = np.concatenate([s.feeds["x"] for s in Calibration.open(data(1, 4, 6, 6), ir.from_proto(before)).source])
    assert c["x_scale"] == pytest.approx((seen.max() - seen.min()) / 255, rel=1e-5)
    np.testing.assert_allclose(c["w_scale"], np.abs(constants(before)["w"]).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    np.testing.assert_allclose(c["b_scale"], c["w_scale"] * c["x_scale"], rtol=1e-6)
    x = array(1, 4, 6, 6, seed=99)
    q = np.clip(np.rint(x / c["x_scale"]) + c["x_zero_point"], 0, 255).astype(np.int64) - int(c["x_zero_point"])
    wide = np.zeros((8, 4, 4), np.int64)
    for i in range(4):
        for j in range(4):
            wide[:, i, j] = np.tensordot(c["w_int8"].astype(np.int64), q[0, :, i : i + 3, j : j + 3], 3) + c["b_int32"]
    real = wide * c["b_scale"].astype(np.float64)[:, None, None]
    stored = np.clip(np.rint(real / c["p_scale"]) + c["p_zero_point"], 0, 255)
    expected = np.exp((stored - c["p_zero_point"]) * c["p_scale"].astype(np.float64))
    for optimize in (False, True):
        found = session(after, optimize).run(None, {"x": x})[0][0]
        step = np.exp(c["p_scale"]) * 1.001  # sums that lie between two integers may be rounded either way
        ratio = found / expected
        assert (np.abs(np.log(ratio)) < np.log(step)).all()
        assert (np.abs(ratio - 1) < 1e-5).mean() > 0.98
    assert kernels(after) == {"QLinearConv": 1}


@pytest.mark.parametrize(("op", "attributes"), [("Gemm", {}), ("Gemm", {"transB": 1}), ("Gemm", {"bias": False}), ("MatMul", {})])
def test_products_with_a_float_result(op: str, attributes) -> None:
    before = product(op, **attributes)
    samples = data(5, 4) if op == "Gemm" else data(2, 5, 4)
    after, _ = quantize(before, samples)
    assert ops(after)["QuantizeLinear"] == 1  # the result stays in float
    assert kernels(after) == {"QGemm" if op == "Gemm" else "MatMulIntegerToFloat": 1}
    c, x = constants(after), samples[0]
    q = np.clip(np.rint(x / c["x_scale"]) + c["x_zero_point"], 0, 255).astype(np.int64) - int(c["x_zero_point"])
    w = c["w_int8"].astype(np.int64).T if attributes.get("transB") else c["w_int8"].astype(np.int64)
    wide = q @ w + c.get("b_int32", 0)
    expected = np.exp(wide * (c["w_scale"].astype(np.float64) * float(c["x_scale"])))
    for optimize in (False, True):
        np.testing.assert_allclose(session(after, optimize).run(None, {"x": x})[0], expected, rtol=2e-5)


def residual() -> onnx.ModelProto:
    """Convs with Relu and Clip, a residual Add, a pool, a Concat, a Flatten, a Gemm."""
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4), node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1] * 4), node("Clip", ["c2", "zero", "six"], ["r2"]),
        node("Conv", ["r2", "w3"], ["c3"], pads=[1] * 4), node("Add", ["c3", "r1"], ["a"]), node("Relu", ["a"], ["r3"]),
        node("MaxPool", ["r3"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["m", "w4"], ["c4"]), node("Concat", ["m", "c4"], ["k"], axis=1),
        node("Conv", ["k", "w5"], ["c5"]), node("GlobalAveragePool", ["c5"], ["g"]), node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w6", "b6"], ["y"]),
    ]  # fmt: skip
    weights = {f"w{i}": array(8, 8 if i > 1 else 3, *(3, 3) if i < 4 else (1, 1), seed=i) / 4 for i in (1, 2, 3, 4)}
    weights |= {"w5": array(8, 16, 1, 1, seed=5) / 4, "w6": array(8, 5, seed=6), "b2": array(8, seed=7), "b6": array(5, seed=8)}
    weights |= {"zero": np.float32(0), "six": np.float32(6)}
    return model(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 5]}, weights)


def test_a_network_runs_on_integers_throughout() -> None:
    before = residual()
    after, log = quantize(before, data(1, 3, 8, 8))
    found = kernels(after)
    assert found == {"QLinearConv": 5, "QGemm": 1, "QLinearAdd": 1, "QLinearConcat": 1, "QLinearGlobalAveragePool": 1}
    final = final_graph(after.SerializeToString(), threads=1).operators
    assert final["QuantizeLinear"] == 1
    assert "DequantizeLinear" not in final
    assert "Relu" not in final
    assert "Clip" not in final
    assert snr(before, after, array(3, 3, 8, 8, seed=9)) > 20
    assert "6 products on integers" in log.notes[0]
    assert "avx512-vnni" in log.notes[0]


def test_what_only_moves_numbers_keeps_their_grid() -> None:
    after, _ = quantize(residual(), data(1, 3, 8, 8))
    c, by = constants(after), {o: n for n in after.graph.node for o in n.output}
    pool = next(n for n in after.graph.node if n.op_type == "MaxPool")
    read = by[pool.input[0]]
    wrote = next(n for n in after.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == pool.output[0])
    assert read.op_type == "DequantizeLinear"
    assert c[read.input[1]] == c[wrote.input[1]]
    assert c[read.input[2]] == c[wrote.input[2]]


def test_float_operators_between_are_left_in_float() -> None:
    """An Add behind a product joins only where integers go on from it."""
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Add", ["c", "c"], ["a"]), node("Exp", ["a"], ["y"])]
    before = model(nodes, {"x": [1, 4, 6, 6]}, {"y": None}, {"w": array(8, 4, 3, 3)})
    after, _ = quantize(before, data(1, 4, 6, 6))
    assert kernels(after) == {"QLinearConv": 1}
    assert ops(after)["QuantizeLinear"] == 2


def test_a_second_run_finds_nothing_to_do() -> None:
    once, _ = quantize(residual(), data(1, 3, 8, 8))
    twice, log = quantize(once, data(1, 3, 8, 8))
    assert log.applied == 0
    assert not log.refusals
    assert twice.SerializeToString() == once.SerializeToString()


def test_the_same_model_gives_the_same_bytes() -> None:
    results = {quantize(residual(), data(1, 3, 8, 8))[0].SerializeToString() for _ in range(2)}
    assert len(results) == 1


@pytest.mark.parametrize("held", [0, 2, 4, 6, 9])
def test_any_application_can_be_held_back(held: int) -> None:
    before = residual()
    after, log = quantize(before, data(1, 3, 8, 8), allow=lambda number: number != held)
    assert log.asked - log.applied == 1
    assert snr(before, after, array(2, 3, 8, 8, seed=9)) > 20


def test_the_end_of_a_graph_keeps_its_name_and_type() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
    before = model(nodes, {"x": ["n", 4, 6, 6]}, {"y": ["n", 8, 4, 4]}, {"w": array(8, 4, 3, 3)})
    after, _ = quantize(before, data(1, 4, 6, 6))
    assert [(o.name, o.type) for o in after.graph.output] == [(o.name, o.type) for o in before.graph.output]
    assert kernels(after) == {"QLinearConv": 1}


def test_a_value_that_is_read_in_float_too() -> None:
    nodes = [
        node("Exp", ["x"], ["e"]), node("MatMul", ["e", "w"], ["a"]), node("MatMul", ["e", "v"], ["b"]),
        node("Sub", ["a", "b"], ["s"]), node("Mul", ["s", "e"], ["y"]),
    ]  # fmt: skip
    before = model(nodes, {"x": [3, 8]}, {"y": [3, 8]}, {"w": array(8, 8), "v": array(8, 8, seed=1)})
    after, _ = quantize(before, data(3, 8))
    assert ops(after)["QuantizeLinear"] == 1  # one pair for both products
    assert next(n for n in after.graph.node if n.op_type == "Mul").input[1] == "e"
    assert kernels(after) == {"MatMulIntegerToFloat": 2}


def test_shared_weights_are_stored_once() -> None:
    nodes = [node("Gemm", ["x", "w", "b"], ["p"]), node("Exp", ["p"], ["e"]), node("Gemm", ["e", "w", "b"], ["y"])]
    before = model(nodes, {"x": [3, 8]}, {"y": [3, 8]}, {"w": array(8, 8) / 8, "b": array(8, seed=1)})
    after, _ = quantize(before, data(3, 8))
    assert [t.name for t in after.graph.initializer if t.data_type == onnx.TensorProto.INT8] == ["w_int8", "w_zero_point"]
    assert kernels(after) == {"QGemm": 2}
    assert snr(before, after, array(3, 8, seed=9)) > 20


def test_a_bias_that_is_large_beside_the_weights_fits() -> None:
    before = product("Conv")
    change = constants(before)
    weight, bias = change["w"].copy(), change["b"].copy()
    weight[0] *= np.float32(1e-12)
    weight[1], bias[0], bias[1] = 0, 3.5, -2.5
    for tensor in before.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weight if tensor.name == "w" else bias, tensor.name))
    after, _ = quantize(before, data(1, 4, 6, 6, count=2), method="min-max")
    assert np.abs(constants(after)["b_int32"].astype(np.int64)).max() <= 2**30 * 1.000001  # as far as float32 scales tell
    x = next(iter(Calibration.open(data(1, 4, 6, 6, count=2), ir.from_proto(before)).source)).feeds["x"]
    a, b = (np.log(session(m).run(None, {"x": x})[0]) for m in (before, after))
    assert np.abs(a - b).max() < 3 * constants(after)["p_scale"]


@pytest.mark.parametrize(
    ("isa", "options", "top", "dtype"),
    [
        ("avx512-vnni", {}, 127, np.uint8), ("amx-int8", {}, 127, np.uint8), ("avx2", {}, 63, np.uint8), ("avx512", {}, 63, np.uint8),
        ("unknown", {}, 63, np.uint8), ("neon-dotprod", {}, 127, np.int8), ("avx2", {"reduce_range": "no"}, 127, np.uint8),
        ("avx2", {"activations": "int8"}, 127, np.int8), ("amx-int8", {"reduce_range": "yes"}, 63, np.uint8),
    ],
)  # fmt: skip
def test_types_follow_the_instruction_set(isa: str, options, top: int, dtype) -> None:
    after, log = quantize(product("Conv"), data(1, 4, 6, 6), isa=isa, **options)
    c = constants(after)
    assert np.abs(c["w_int8"].astype(int)).max() == top
    assert c["x_zero_point"].dtype == dtype
    assert f"weights in {8 if top == 127 else 7} bits for {isa}" in log.notes[0]
    assert kernels(after) == {"QLinearConv": 1}


def test_seven_bits_cannot_saturate() -> None:
    """Two products of an unsigned and a signed byte fit into 16 bits, the most that AVX2 adds up at once."""
    after, _ = quantize(product("Conv"), data(1, 4, 6, 6), isa="avx2")
    assert 2 * 255 * int(np.abs(constants(after)["w_int8"].astype(int)).max()) < 2**15


def test_one_scale_for_a_weight() -> None:
    before = product("Conv", opset=11)
    after, _ = quantize(before, data(1, 4, 6, 6), granularity="tensor")
    assert constants(after)["w_scale"].shape == ()
    assert kernels(after) == {"QLinearConv": 1}


def refused(before: onnx.ModelProto, samples, reason: str, **options) -> None:
    after, log = quantize(before, samples, **options)
    assert after.SerializeToString() == ir.to_proto(ir.from_proto(before)).SerializeToString() or ops(after) == ops(before)
    assert "QuantizeLinear" not in ops(after)
    assert any(reason in r for r in reasons(log)), reasons(log)


def gemm(w=None, b=None, inputs=("x", "w", "b"), overridable=(), extra=(), **attributes) -> onnx.ModelProto:
    weights = {"w": array(4, 8) if w is None else w, "b": array(8) if b is None else b}
    weights = {k: v for k, v in weights.items() if k in inputs}
    nodes = [node("Gemm", inputs, ["p"], **attributes), node("Exp", ["p"], ["y"]), *extra]
    return model(nodes, {"x": [4, 4]}, {"y": None}, weights, overridable=overridable)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (product("ConvTranspose"), "no integer kernel of ConvTranspose"),
        (gemm(transA=1), "its first input is transposed"),
        (gemm(alpha=0.5), "scaled by alpha"),
        (gemm(beta=0.5), "its bias is scaled by beta"),
        (gemm(b=array(4, 8)), "has not one number for each channel"),
        (gemm(b=array(1)), "has not one number for each channel"),
        (gemm(overridable=["w"]), "the weight 'w' is also a graph input"),
        (gemm(overridable=["b"]), "the bias 'b' is also a graph input"),
        (gemm(w=np.full((4, 8), np.inf, np.float32)), "would not be finite"),
        (gemm(b=np.full(8, np.nan, np.float32)), "would not be finite"),
        (gemm(extra=[node("Neg", ["w"], ["n"])]), "also consumed by Neg"),
        (product("Gemm", opset=12), "opset 12 has no scale per channel"),
        (product("Gemm", opset=9), "opset 9 has no QuantizeLinear"),
    ],
)
def test_refusals(before: onnx.ModelProto, reason: str) -> None:
    shape = [d.dim_value for d in before.graph.input[0].type.tensor_type.shape.dim]
    refused(before, data(*shape), reason)


def test_refusals_of_other_types_and_shapes() -> None:
    weights = {"w": array(4, 8, dtype="float16")}
    half = model([node("MatMul", ["x", "w"], ["y"])], {"x": [4, 4]}, {"y": None}, weights, types={"x": 10, "y": 10})
    refused(half, [d.astype(np.float16) for d in data(4, 4)], "its input is not float32")
    deep = model([node("MatMul", ["x", "w"], ["y"])], {"x": [2, 4, 4]}, {"y": None}, {"w": array(2, 4, 8)})
    refused(deep, data(2, 4, 4), "its weight has 3 dimensions, not 2")


@pytest.mark.parametrize(
    ("between", "reason"),
    [("Log", "'h' cannot be quantized: it has NaN in"), ("zero", "'h' cannot be quantized: it is 0 everywhere")],
)
def test_values_without_a_range(between: str, reason: str) -> None:
    first = node("Mul", ["x", "zero"], ["h"]) if between == "zero" else node("Log", ["x"], ["h"])
    weights = {"w": array(4, 8)} | ({"zero": np.zeros(4, np.float32)} if between == "zero" else {})
    before = model([first, node("MatMul", ["h", "w"], ["p"]), node("Exp", ["p"], ["y"])], {"x": [3, 4]}, {"y": [3, 8]}, weights)
    refused(before, data(3, 4), reason)


def test_two_variable_factors_are_no_match() -> None:
    before = model([node("MatMul", ["x", "z"], ["y"])], {"x": [4, 4], "z": [4, 4]}, {"y": [4, 4]})
    after, log = quantize(before, [{"x": d, "z": d} for d in data(4, 4)])
    assert ops(after) == ops(before)
    assert not log.refusals


def test_factors_that_one_grid_would_lose_keep_a_product_in_float() -> None:
    """Constant factors of channels a thousand times apart: the small ones would become zero in eight bits."""
    weights = {"w": array(8, 8, seed=1) / 4, "v": array(8, 8, seed=2) / 4}
    nodes = [node("Gemm", ["x", "w"], ["a"]), node("Mul", ["a", "f"], ["m"]), node("Gemm", ["m", "v"], ["c"]), node("Exp", ["c"], ["y"])]
    for factors, joins in ((np.linspace(0.5, 1.5, 8), True), (np.geomspace(1e-3, 1, 8), False)):
        proto = model(nodes, {"x": [5, 8]}, {"y": None}, weights | {"f": factors.astype(np.float32)})
        after, _ = quantize(proto, data(5, 8))
        assert kernels(after).get("QLinearMul", 0) == joins
