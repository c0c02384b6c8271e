"""Products on integers with inputs rounded when they come: the arithmetic against numpy, the kernels, what is shared, what is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from graphopt.measurement import Target, final_graph, integer_kernels
from graphopt.rewriting import ChangeLog, Context
from graphopt.rewriting.context import Tools
from tests.support import REGISTRY, array, drop_inferred, model, node, ops, reasons, session

NAME = "quantize-dynamic"
SMALL = {"min-elements": 1, "min-recurrent": 1}


def quantize(proto: onnx.ModelProto, *, isa: str = "avx512-vnni", allow=None, **options) -> tuple[onnx.ModelProto, ChangeLog]:
    graph = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    log = ChangeLog(NAME, allow)
    given = SMALL | {k.replace("_", "-"): v for k, v in options.items()}
    REGISTRY.get(NAME).configure(given).run(Context(graph, log, tools=Tools(None, Target("cpu", "test", 1, isa))))
    drop_inferred(graph)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made)
    return made, log


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def kernels(proto: onnx.ModelProto) -> dict[str, int]:
    return integer_kernels(final_graph(proto.SerializeToString(), threads=1))


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.float32, int]:
    """DynamicQuantizeLinear by its definition: q - zero point, the scale, the zero point."""
    low, high = np.float32(min(0, x.min())), np.float32(max(0, x.max()))
    scale = np.float32((high - low) / np.float32(255))
    if scale == 0:
        return np.zeros(x.shape, np.int64), np.float32(1), 0
    zero = int(np.clip(np.rint(np.float32(0) - low / scale), 0, 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - zero, scale, zero


def product(op: str = "MatMul", *, bias: tuple[int, ...] | None = None, w=None, x=(5, 8), opset: int = 17, **attributes) -> onnx.ModelProto:
    weight = array(8, 6, seed=1) * np.exp(array(1, 6, seed=2)) if w is None else w
    weight = weight.T if attributes.get("transB") else weight
    weights = {"w": np.ascontiguousarray(weight)} | ({} if bias is None else {"b": array(*bias, seed=3)})
    return model([node(op, ["x", *weights], ["y"], **attributes)], {"x": x}, {"y": None}, weights, opset=opset)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("x", [array(5, 8, seed=5), array(5, 8, low=2.0), -array(5, 8, low=2.0), np.zeros((5, 8), np.float32)])
def test_the_sums_are_integers(x: np.ndarray, granularity: str) -> None:
    after, log = quantize(product(), granularity=granularity)
    assert log.applied == 1
    assert ops(after) == {"DynamicQuantizeLinear": 1, "MatMulInteger": 1, "Cast": 1, "Mul": 2}
    c, w = constants(after), constants(product())["w"]
    assert c["w_int8"].dtype == np.int8
    np.testing.assert_allclose(c["w_scale"], np.abs(w).max(axis=0 if granularity == "channel" else None) / 127, rtol=1e-6)
    assert (np.abs(c["w_int8"] - w / c["w_scale"]) <= 0.5001).all()
    q, scale, _ = rounded(x)
    expected = (q @ c["w_int8"].astype(np.int64)).astype(np.float32) * (scale * c["w_scale"])
    for optimize in (False, True):
        np.testing.assert_allclose(session(after, optimize).run(None, {"x": x})[0], expected, rtol=1e-6, atol=1e-30)
    assert kernels(after) == {"DynamicQuantizeMatMul": 1}


def test_halves_are_rounded_to_even() -> None:
    """127.5, 0.5 and 2.5 steps above zero: to 128, 0 and 2, as the definition has it."""
    x = np.zeros((1, 8), np.float32)
    x[0, :5] = [255, 127.5, 0.5, 2.5, 1.5]
    after, _ = quantize(product(w=np.eye(8, dtype=np.float32), x=(1, 8)))
    found = session(after).run(None, {"x": x})[0]
    np.testing.assert_allclose(found[0, :5], [255, 128, 0, 2, 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("op", "bias", "attributes", "added"),
    [
        ("Gemm", (6,), {}, {}), ("Gemm", (6,), {"transB": 1}, {}), ("Gemm", None, {"transB": 1}, {}), ("Gemm", (1, 6), {}, {}),
        ("Gemm", (6,), {"alpha": 0.5, "beta": -3.0}, {}), ("Gemm", (1, 6), {"beta": 0.25}, {}),
        ("Gemm", (5, 6), {"beta": 2.0}, {"Add": 1}), ("Gemm", (1,), {}, {"Add": 1}), ("Gemm", (5, 1), {}, {"Add": 1}),
        ("Gemm", (), {"beta": 2.0}, {"Add": 1}),
    ],
)  # fmt: skip
def test_gemm(op: str, bias, attributes, added) -> None:
    before = product(op, bias=bias, **attributes)
    after, _ = quantize(before)
    c, x = constants(after), array(5, 8, seed=5)
    q, scale, _ = rounded(x)
    assert c["w_int8"].shape == (8, 6)
    w = constants(before)["w"]
    dequantized = c["w_int8"] * c["w_scale"].astype(np.float64) / attributes.get("alpha", 1.0)
    assert np.abs(dequantized - (w.T if attributes.get("transB") else w)).max() <= 0.501 * np.abs(w).max() / 127
    expected = (q @ c["w_int8"].astype(np.int64)) * (c["w_scale"].astype(np.float64) * scale)
    if bias is not None:
        expected = expected + attributes.get("beta", 1.0) * constants(before)["b"].astype(np.float64)
    for optimize in (False, True):
        np.testing.assert_allclose(session(after, optimize).run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)
    assert kernels(after) == {"DynamicQuantizeMatMul": 1}  # a bias of one number a column is taken into it
    assert ("Add" in final_graph(after.SerializeToString(), threads=1).operators) == bool(added)


def test_a_bias_that_a_caller_gives() -> None:
    before = model([node("Gemm", ["x", "w", "b"], ["y"])], {"x": [5, 8], "b": [6]}, {"y": None}, {"w": array(8, 6)})
    after, _ = quantize(before)
    assert kernels(after) == {"DynamicQuantizeMatMul": 1}
    assert snr(before, after, {"x": array(5, 8, seed=2), "b": array(6, seed=3)}) > 35


def snr(before: onnx.ModelProto, after: onnx.ModelProto, feeds) -> float:
    worst = np.inf
    for optimize in (False, True):
        for a, b in zip(session(before).run(None, feeds), session(after, optimize).run(None, feeds)):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            worst = min(worst, 10 * np.log10((a.astype(np.float64) ** 2).sum() / ((a.astype(np.float64) - b) ** 2).sum()))
    return float(worst)


def test_products_of_one_value_share_its_rounding() -> None:
    nodes = [node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(3)] + [node("Relu", ["x"], ["r"]), node("MatMul", ["r", "w0"], ["z"])]
    before = model(nodes, {"x": ["n", 5, 8]}, ["y0", "y1", "y2", "z"], {f"w{i}": array(8, 6, seed=i) for i in range(3)})
    after, log = quantize(before)
    assert log.applied == 4
    assert ops(after)["DynamicQuantizeLinear"] == 2
    assert sorted(constants(after)) == sorted(f"w{i}_{part}" for i in range(3) for part in ("int8", "scale"))  # w0 once
    assert kernels(after) == {"MatMulIntegerToFloat": 3, "DynamicQuantizeMatMul": 1}
    assert snr(before, after, {"x": array(2, 5, 8, seed=9)}) > 35


def test_what_is_held_back_stays_in_float() -> None:
    nodes = [node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(3)]
    before = model(nodes, {"x": [5, 8]}, ["y0", "y1", "y2"], {f"w{i}": array(8, 6, seed=i) for i in range(3)})
    after, log = quantize(before, allow=lambda number: number != 0)
    assert [label for _, label in log.numbered] == ["y1", "y2"]
    assert ops(after) == {"MatMul": 1, "DynamicQuantizeLinear": 1, "MatMulInteger": 2, "Cast": 2, "Mul": 4}
    assert "w0" in constants(after)
    assert snr(before, after, {"x": array(5, 8, seed=9)}) > 35


def test_a_weight_that_others_read_stays_beside_its_integers() -> None:
    nodes = [node("Gather", ["t", "i"], ["e"]), node("Gemm", ["x", "t"], ["y"], transB=1)]
    before = model(nodes, {"x": [5, 8], "i": [2]}, ["e", "y"], {"t": array(6, 8)}, types={"i": 7})
    after, _ = quantize(before)
    assert sorted(constants(after)) == ["t", "t_int8", "t_scale"]
    assert snr(before, after, {"x": array(5, 8), "i": np.asarray([0, 3])}) > 35


def test_one_weight_read_in_two_orders() -> None:
    nodes = [node("Gemm", ["x", "w"], ["a"]), node("Gemm", ["x", "w"], ["b"], transB=1), node("Gemm", ["x", "w"], ["c"], alpha=2.0)]
    before = model(nodes, {"x": [5, 8]}, ["a", "b", "c"], {"w": array(8, 8)})
    after, _ = quantize(before)
    assert sorted(constants(after)) == ["w_int8", "w_int8_1", "w_scale", "w_scale_1", "w_scale_2"]
    assert snr(before, after, {"x": array(5, 8, seed=2)}) > 35


def test_batches_and_vectors() -> None:
    for shape in ((2, 3, 5, 8), (8,), (1, 8)):
        before = product(x=shape)
        after, _ = quantize(before)
        assert snr(before, after, {"x": array(*shape, seed=4)}) > 35


@pytest.mark.parametrize(("isa", "options", "top"), [
    ("avx512-vnni", {}, 127), ("amx-int8", {}, 127), ("avx-vnni", {}, 127), ("neon-i8mm", {}, 127), ("avx2", {}, 63), ("avx512", {}, 63),
    ("unknown", {}, 63), ("avx2", {"reduce_range": "no"}, 127), ("amx-int8", {"reduce_range": "yes"}, 63),
])  # fmt: skip
def test_weights_follow_the_instruction_set(isa: str, options, top: int) -> None:
    after, log = quantize(product(), isa=isa, **options)
    assert np.abs(constants(after)["w_int8"].astype(int)).max() == top
    assert f"weights in {8 if top == 127 else 7} bits for {isa}" in log.notes[0]


def test_pairs_of_products_in_seven_bits_fit_into_sixteen() -> None:
    """What AVX2 adds up in 16 bits without a warning: two products of 255 and the largest weight."""
    w = np.full((64, 4), 10.0, np.float32)
    for isa, fits in (("avx2", True), ("amx-int8", False)):
        stored = constants(quantize(product(w=w, x=(5, 64)), isa=isa)[0])["w_int8"].astype(int)
        assert (2 * 255 * np.abs(stored).max() < 2**15) == fits


def test_the_longest_sum() -> None:
    """65,793 products of 255 and 128 are the most that 32 bits hold whatever the numbers."""
    from graphopt.passes.quantization.instructions import LONGEST_SUM

    assert LONGEST_SUM * 255 * 128 < 2**31 <= (LONGEST_SUM + 1) * 255 * 128
    assert Fraction(2**31 - 1, 255 * 128) >= LONGEST_SUM
    refused(product(w=np.ones((LONGEST_SUM + 1, 1), np.float32), x=(1, LONGEST_SUM + 1)), "products may not fit into 32 bits")
    w = np.ones((LONGEST_SUM, 1), np.float32)
    after, _ = quantize(product(w=w, x=(1, LONGEST_SUM)))
    found = session(after, True).run(None, {"x": np.ones((1, LONGEST_SUM), np.float32)})[0]
    assert found == pytest.approx(LONGEST_SUM, rel=1e-6)


def refused(before: onnx.ModelProto, reason: str, **options) -> None:
    after, log = quantize(before, **options)
    assert ops(after) == ops(before)
    assert log.applied == 0
    assert any(reason in r for r in reasons(log)), reasons(log)


def gemm(nodes, weights, *, overridable=(), x=(5, 8), **options) -> onnx.ModelProto:
    return model(nodes, {"x": x}, ["y"], weights, overridable=overridable, **options)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (product("Gemm", transA=1, x=(8, 5)), "its first input is transposed"),
        (product("Gemm", alpha=0.0), "its product is scaled by 0"),
        (product("Gemm", alpha=float("inf")), "its product is scaled by inf"),
        (product(opset=10), "opset 10 has no DynamicQuantizeLinear"),
        (product(w=np.full((8, 6), np.inf, np.float32)), "the weight is not finite"),
        (product(w=np.where(array(8, 6) > 1.5, np.nan, 1).astype(np.float32)), "the weight is not finite"),
        (product(w=array(2, 8, 6), x=(2, 5, 8)), "the weight has 3 dimensions, not 2"),
        (gemm([node("MatMul", ["x", "w"], ["y"])], {"w": array(8, 6)}, overridable=["w"]), "a caller may override it"),
        (gemm([node("MatMul", ["w", "x"], ["y"])], {"w": array(6, 5)}), "its weight is the first factor"),
        (
            gemm([node("MatMul", ["v", "w"], ["z"]), node("Add", ["z", "x"], ["y"])], {"v": array(5, 8), "w": array(8, 8)}),
            "both inputs are constant",
        ),
        (
            gemm([node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"])], {"w": array(6, 8)}),
            "is computed by Transpose of constants",
        ),
        (
            gemm(
                [node("DequantizeLinear", ["w", "s"], ["t"]), node("MatMul", ["x", "t"], ["y"])],
                {"w": np.ones((8, 6), np.int8), "s": np.float32(0.1)},
            ),
            "is stored in an integer type already",
        ),
        (gemm([node("Conv", ["x", "w"], ["y"])], {"w": array(4, 3, 3, 3)}, x=(1, 3, 6, 6)), "several times slower"),
        (gemm([node("ConvTranspose", ["x", "w"], ["y"])], {"w": array(3, 4, 3, 3)}, x=(1, 3, 6, 6)), "no integer kernel of ConvTranspose"),
        (
            gemm([node("GRU", ["x", "w", "r"], ["y"], hidden_size=4)], {"w": array(1, 12, 8), "r": array(1, 12, 4)}, x=(5, 2, 8)),
            "no integer kernel of GRU",
        ),
        (
            gemm([node("RNN", ["x", "w", "r"], ["y"], hidden_size=4)], {"w": array(1, 4, 8), "r": array(1, 4, 4)}, x=(5, 2, 8)),
            "no integer kernel of RNN",
        ),
    ],
)  # fmt: skip
def test_refusals(before: onnx.ModelProto, reason: str) -> None:
    refused(before, reason)


def test_a_bias_of_a_caller_that_is_scaled() -> None:
    before = model([node("Gemm", ["x", "w", "b"], ["y"], beta=0.5)], {"x": [5, 8], "b": [6]}, {"y": None}, {"w": array(8, 6)})
    refused(before, "scaled by beta")


def test_small_weights() -> None:
    refused(product(), "the weight has 48 elements; below 49", min_elements=49)


def test_other_types() -> None:
    half = model([node("MatMul", ["x", "w"], ["y"])], {"x": [4, 8]}, ["y"], {"w": array(8, 6, dtype="float16")}, types={"x": 10, "y": 10})
    refused(half, "the weight is FLOAT16, not float32")
    whole = model([node("MatMul", ["x", "w"], ["y"])], {"x": [4, 8]}, ["y"], {"w": np.ones((8, 6), np.int32)}, types={"x": 6, "y": 6})
    after, log = quantize(whole)
    assert ops(after) == {"MatMul": 1}
    assert not log.refusals


def test_products_of_two_computed_values_are_counted() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "z"], ["y"])]
    before = model(nodes, {"x": [5, 8], "z": [6, 3]}, ["y"], {"w": array(8, 6)})
    after, log = quantize(before)
    assert ops(after)["MatMul"] == 1
    assert "1 MatMul on integers" in log.notes[0]
    assert log.notes[0].endswith("1 products of two computed values stay in float")
    _, log = quantize(model([node("MatMul", ["x", "z"], ["y"])], {"x": [5, 8], "z": [8, 3]}, ["y"]))
    assert log.notes[0].startswith("nothing to quantize")


def test_subgraphs_and_functions() -> None:
    def branch(name: str, weight: str):
        return helper.make_graph(
            [node("MatMul", ["x", weight], [f"{name}_y"])], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, [5, 6])]
        )

    chosen = node("If", ["c"], ["y"], then_branch=branch("a", "w"), else_branch=branch("b", "v"))
    before = model([chosen], {"x": [5, 8], "c": []}, {"y": [5, 6]}, {"w": array(8, 6), "v": array(8, 6, seed=1)}, types={"c": 9})
    after, log = quantize(before)
    assert log.applied == 2
    for c in (True, False):
        assert snr(before, after, {"x": array(5, 8, seed=2), "c": np.asarray(c)}) > 35
    weight = node("Constant", [], ["w"], value=numpy_helper.from_array(array(8, 6)))
    body = [weight, node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["x", "w"], ["b"]), node("Add", ["a", "b"], ["y"])]
    function = helper.make_function("local", "Block", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("Block", ["x"], ["y"], domain="local")
    before = model([call], {"x": [5, 8]}, {"y": [5, 6]}, functions=[function], opsets={"local": 1})
    after, log = quantize(before)
    assert log.applied == 2
    assert snr(before, after, {"x": array(5, 8, seed=2)}) > 35


def lstm(directions: int = 1, *, opset: int = 17, bias: bool = True, outputs=("y", "h", "c"), **attributes) -> onnx.ModelProto:
    hidden, given = 6, 8
    weights = {"w": 0.4 * array(directions, 4 * hidden, given, seed=1), "r": 0.4 * array(directions, 4 * hidden, hidden, seed=2)}
    if bias:
        weights["b"] = 0.1 * array(directions, 8 * hidden, seed=3)
    made = node("LSTM", ["x", *weights], list(outputs), hidden_size=hidden, **attributes)
    return model([made], {"x": [7, 2, given]}, [o for o in outputs if o], weights, opset=opset)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"bias": False}, {"directions": 2, "direction": "bidirectional"}, {"direction": "reverse"}, {"outputs": ("y",)},
        {"outputs": ("", "h")}, {"outputs": ("", "", "c")}, {"clip": 0.8}, {"input_forget": 1},
        {"activations": ["HardSigmoid", "Tanh", "Softsign"], "activation_alpha": [0.3], "activation_beta": [0.4]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_lstm(options, granularity: str) -> None:
    before = lstm(**options)
    after, log = quantize(before, granularity=granularity)
    assert [n.op_type for n in after.graph.node] == ["DynamicQuantizeLSTM"]
    assert "1 LSTM on integers, weights in 8 bits" in log.notes[0]
    directions = options.get("directions", 1)
    c = constants(after)
    assert (c["w_int8"].shape, c["r_int8"].shape) == ((directions, 8, 24), (directions, 6, 24))
    assert c["w_scale"].shape == ((directions, 24) if granularity == "channel" else (directions,))
    w = c["w_int8"] * c["w_scale"].reshape(directions, 1, -1)
    assert np.abs(w.transpose(0, 2, 1) - constants(before)["w"]).max() <= 0.501 * c["w_scale"].max()
    x = {"x": array(7, 2, 8, seed=5)}
    assert snr(before, after, x) > 25
    assert kernels(after) == {"DynamicQuantizeLSTM": 1}
    # The runtime's own kernel on the weights that the integers stand for: what is left is the rounding of inputs and states.
    stood_for = lstm(**options)
    for tensor in stood_for.graph.initializer:
        if tensor.name in "wr":
            by = c[f"{tensor.name}_int8"] * c[f"{tensor.name}_scale"].reshape(directions, 1, -1)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(by.transpose(0, 2, 1), np.float32), tensor.name))
    assert snr(stood_for, after, x) > 30


def test_lstm_with_states_lengths_and_peepholes() -> None:
    weights = {"w": 0.4 * array(1, 24, 8, seed=1), "r": 0.4 * array(1, 24, 6, seed=2), "p": 0.3 * array(1, 18, seed=4)}
    made = node("LSTM", ["x", "w", "r", "", "n", "h0", "c0", "p"], ["y", "h"], hidden_size=6)
    inputs = {"x": [7, 2, 8], "n": [2], "h0": [1, 2, 6], "c0": [1, 2, 6]}
    before = model([made], inputs, ["y", "h"], weights, types={"n": 6})
    after, _ = quantize(before)
    feeds = {"x": array(7, 2, 8), "n": np.asarray([4, 7], np.int32), "h0": 0.5 * array(1, 2, 6, seed=5), "c0": 0.5 * array(1, 2, 6, seed=6)}
    assert snr(before, after, feeds) > 25


def test_lstm_refusals() -> None:
    refused(lstm(), "the recurrent weight has 144 elements; below 145", min_recurrent=145)
    refused(lstm(opset=10), "opset 10 has no DynamicQuantizeLinear")
    batch = node("LSTM", ["x", "w", "r"], ["y"], hidden_size=6, layout=1)
    weights = {"w": array(1, 24, 8), "r": array(1, 24, 6)}
    refused(model([batch], {"x": [2, 7, 8]}, ["y"], weights), "its batch comes first")
    plain = node("LSTM", ["x", "w", "r"], ["y"], hidden_size=6)
    refused(model([plain], {"x": [7, 2, 8], "r": [1, 24, 6]}, ["y"], {"w": weights["w"]}), "its weights are not constant")
    refused(model([plain], {"x": [7, 2, 8]}, ["y"], weights, overridable=["w"]), "a caller may override it")


def attention(inputs=("x", "w", "b", "m"), **attributes) -> onnx.ModelProto:
    weights = {"w": array(16, 48, seed=1) * 0.3, "b": array(48, seed=2) * 0.1}
    made = helper.make_node("Attention", inputs, ["y"], name="y", domain="com.microsoft", **({"num_heads": 4} | attributes))
    given = {"x": [2, 5, 16], "m": [2, 5], "a": [2, 4, 5, 5]}
    weights = {k: v for k, v in weights.items() if k in inputs}
    given = {k: v for k, v in given.items() if k in inputs}
    return model([made], given, {"y": [2, 5, 16]}, weights, types={"m": 6}, opsets={"com.microsoft": 1})


@pytest.mark.parametrize("attributes", [{}, {"unidirectional": 1}])
def test_attention(attributes) -> None:
    before = attention(**attributes)
    after, _ = quantize(before)
    assert ops(after) == {"DynamicQuantizeLinear": 1, "QAttention": 1}
    mask = np.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    assert snr(before, after, {"x": array(2, 5, 16, seed=3), "m": mask}) > 28
    assert kernels(after) == {"QAttention": 1}


def test_attention_refusals() -> None:
    refused(attention(("x", "w", "", "m")), "QAttention must have a bias")
    refused(attention(("x", "w", "b", "", "", "a")), "takes nothing that is added")
    refused(attention(do_rotary=1), "has no attribute do_rotary")
