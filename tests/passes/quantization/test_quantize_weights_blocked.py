"""Weights in blocks in a graph: the numbers that ONNX Runtime reads out of them, what is shared, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.quantization.blocks import Layout, nearest, quantize
from graphopt.passes.quantization.hqq import half_quadratic
from onnx import helper, numpy_helper

from graphopt.calibration import Calibration
from graphopt.measurement import Target, final_graph
from graphopt.rewriting import ChangeLog, Context
from graphopt.rewriting.context import Tools
from tests.support import REGISTRY, array, drop_inferred, model, node, ops, reasons, run_pass, session

NAME = "quantize-weights-blocked"


def product(op: str = "MatMul", k: int = 96, n: int = 24, *, dtype="float32", weights=None, opset=17, **attributes) -> onnx.ModelProto:
    """x -> product -> y; "b" of `weights` is a bias."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = (n, k) if attributes.get("transB") else (k, n)
    given = {"w": array(*shape, seed=1, dtype=dtype)} | (weights or {})
    inputs = ["x", "w", "b"] if "b" in given else ["x", "w"]
    x = ["m", k] if op == "Gemm" else ["b", "m", k]
    y = ["m", n] if op == "Gemm" else ["b", "m", n]
    nodes = [node(op, inputs, ["y"], **attributes)]
    return model(nodes, {"x": x}, {"y": y}, given, opset=opset, ir_version=10, types={"x": kind, "y": kind})


def initializers(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def run(proto: onnx.ModelProto, feeds, optimize: bool = False) -> np.ndarray:
    return session(proto, optimize).run(None, feeds)[0]


def refused(before: onnx.ModelProto, reason: str, **options) -> None:
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


def dense(proto: onnx.ModelProto, layout: Layout, columns: int) -> np.ndarray:
    """The matrix [N, K] that the stored bytes stand for, unpacked here number by number, in double precision."""
    found = initializers(proto)
    packed, scales, zeros = (found.get(f"w_{what}") for what in ("blocks", "scales", "zero_points"))
    rows = packed.reshape(len(packed), -1)
    wide = np.zeros((len(rows), columns))
    for n in range(len(rows)):
        for k in range(columns):
            g = k // layout.block
            if layout.bits == 8:
                q = int(rows[n, k])
                z = 128 if zeros is None else int(zeros[n, g])
            else:
                q = int(rows[n, k // 2]) >> 4 * (k % 2) & 15
                z = 8 if zeros is None else int(zeros[n, g // 2]) >> 4 * (g % 2) & 15
            wide[n, k] = (q - z) * float(scales[n, g])
    return wide


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("k", "n", "block"), [(96, 24, 32), (100, 7, 32), (33, 31, 16), (256, 5, 128), (65, 9, 64)])
def test_the_runtime_reads_what_was_stored(bits: int, symmetric: bool, k: int, n: int, block: int) -> None:
    """MatMulNBits of the identity is the stored matrix to the last bit, in every layout, with odd K and N."""
    before = product("MatMul", k, n)
    after, log = run_pass(before, NAME, bits=bits, symmetric=symmetric, block_size=block, min_elements=1, method="rtn")
    assert (ops(after), log.applied) == ({"MatMulNBits": 1}, 2 if bits == 4 else 1)
    layout = Layout(bits, block, symmetric)
    stored = dense(after, layout, k)
    found = run(after, {"x": np.eye(k, dtype=np.float32)[None]})[0].T
    np.testing.assert_array_equal(found, stored.astype(np.float32))
    np.testing.assert_array_equal(found, quantize(initializers(before)["w"].T, layout, nearest).dense())
    x = array(2, 3, k, seed=5)
    for optimize in (False, True):
        np.testing.assert_allclose(run(after, {"x": x}, optimize), x @ stored.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("op", "k", "n", "attributes"), [("MatMul", 96, 24, {}), ("MatMul", 77, 13, {}), ("Gemm", 96, 24, {"transB": 1})])
def test_the_standard_form_says_the_same(bits: int, symmetric: bool, op: str, k: int, n: int, attributes) -> None:
    """DequantizeLinear gives the numbers that MatMulNBits has, and the runtime makes MatMulNBits of it."""
    before = product(op, k, n, opset=21, **attributes)
    options = {"bits": bits, "symmetric": symmetric, "min_elements": 1}
    after, _ = run_pass(before, NAME, form="standard", **options)
    contrib, _ = run_pass(before, NAME, form="contrib", **options)
    assert ops(after) == {"DequantizeLinear": 1, op: 1}
    stored = {t.name: t.data_type for t in after.graph.initializer}
    types = {(4, True): "INT4", (4, False): "UINT4", (8, True): "INT8", (8, False): "UINT8"}
    assert stored["w_blocks"] == onnx.TensorProto.DataType.Value(types[bits, symmetric])
    x = array(3, k, seed=5) if op == "Gemm" else array(1, 3, k, seed=5)
    eye = np.eye(k, dtype=np.float32) if op == "Gemm" else np.eye(k, dtype=np.float32)[None]
    np.testing.assert_array_equal(run(after, {"x": eye}), run(contrib, {"x": eye}))
    np.testing.assert_allclose(run(after, {"x": x}), run(contrib, {"x": x}), rtol=1e-4, atol=1e-4)
    assert final_graph(after.SerializeToString(), threads=1).operators == {"com.microsoft::MatMulNBits": 1}


def test_where_the_runtime_has_no_such_operator() -> None:
    for provider, expected in (("openvino", {"DequantizeLinear": 1, "MatMul": 1}), ("cuda", {"MatMulNBits": 1})):
        graph = ir.from_proto(product(opset=21))
        tools = Tools(None, Target(provider, "test", 1, "unknown"))
        REGISTRY.get(NAME).configure({}).run(Context(graph, ChangeLog(NAME), tools=tools))
        assert ops(ir.to_proto(graph)) == expected


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(24,), (1, 24), (1,), (), (3, 24)])
def test_a_gemm_and_its_bias(transposed: int, bias) -> None:
    before = product("Gemm", transB=transposed, weights={"b": array(*bias, seed=9)})
    after, _ = run_pass(before, NAME)
    assert ops(after) == ({"MatMulNBits": 1, "Add": 1} if len(bias) == 2 and bias[0] == 3 else {"MatMulNBits": 1})
    x = array(3, 96, seed=4)
    expected = x @ dense(after, Layout(4, 32, False), 96).T + array(*bias, seed=9)
    for optimize in (False, True):
        np.testing.assert_allclose(run(after, {"x": x}, optimize), expected, rtol=1e-4, atol=1e-4)


def test_a_bias_that_is_computed() -> None:
    nodes = [node("Gemm", ["x", "w", "c"], ["y"])]
    before = model(nodes, {"x": [3, 96], "c": [24]}, {"y": [3, 24]}, {"w": array(96, 24)})
    after, _ = run_pass(before, NAME)
    assert list(after.graph.node[0].input)[-1] == "c"
    feeds = {"x": array(3, 96), "c": array(24, seed=1)}
    np.testing.assert_allclose(run(after, feeds), run(after, feeds | {"c": feeds["c"] * 0}) + feeds["c"], rtol=1e-4, atol=1e-4)


def test_the_domain_is_imported_and_names_are_kept() -> None:
    after, log = run_pass(product(), NAME)
    assert {o.domain: o.version for o in after.opset_import} == {"": 17, "com.microsoft": 1}
    assert [list(n.output) for n in after.graph.node] == [["y"]]
    assert "1 weights of products, 9,216 bytes to 1,488 (0.161x)" in log.notes[0]
    standard, _ = run_pass(product(opset=21), NAME, form="standard")
    assert {o.domain: o.version for o in standard.opset_import} == {"": 21}


# --- what reads a weight --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("columns", "block"), [(96, 32), (96, 16), (100, 64)])
def test_a_table_is_read_by_rows(bits: int, symmetric: bool, columns: int, block: int) -> None:
    weight, indices = array(50, columns), np.asarray([[3, -1], [0, 49]])
    before = model([node("Gather", ["w", "i"], ["y"])], {"i": [2, 2]}, {"y": [2, 2, columns]}, {"w": weight}, types={"i": 7})
    after, log = run_pass(before, NAME, bits=bits, symmetric=symmetric, block_size=block)
    expected = quantize(weight, Layout(bits, block, symmetric), half_quadratic).dense()
    assert ops(after) == {"GatherBlockQuantized": 1}, reasons(log)
    for optimize in (False, True):
        np.testing.assert_array_equal(run(after, {"i": indices}, optimize), expected[indices])
    assert "1 tables" in log.notes[0]
    assert ops(run_pass(before, NAME, tables="false")[0]) == {"Gather": 1}


@pytest.mark.parametrize("op", ["Transpose", "Gemm"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_tied_weights_are_stored_once(op: str, symmetric: bool) -> None:
    """A table whose transpose is the last product's weight."""
    last = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["r", "t"], ["y"])]
    if op == "Gemm":
        last = [node("Gemm", ["r", "w"], ["y"], transB=1)]
    before = model([node("Gather", ["w", "i"], ["r"]), *last], {"i": [3]}, {"y": [3, 50]}, {"w": array(50, 96)}, types={"i": 7})
    after, log = run_pass(before, NAME, symmetric=symmetric)
    assert (ops(after), log.applied) == ({"Reshape": 1, "GatherBlockQuantized": 1, "MatMulNBits": 1}, 2)
    assert sum(a.nbytes for a in initializers(after).values() if a.size > 2) < 0.17 * 50 * 96 * 4
    stored, indices = dense(after, Layout(4, 32, symmetric), 96), np.asarray([4, 0, 49])
    for optimize in (False, True):
        np.testing.assert_allclose(run(after, {"i": indices}, optimize), stored[indices] @ stored.T, rtol=1e-4, atol=1e-4)
    assert "Reshape" not in final_graph(after.SerializeToString(), threads=1).operators


def test_a_weight_of_several_products_is_stored_once() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Gemm", ["x2", "w"], ["b"]), node("Add", ["a", "b"], ["y"])]
    before = model(nodes, {"x": [3, 96], "x2": [3, 96]}, {"y": [3, 24]}, {"w": array(96, 24)})
    after, log = run_pass(before, NAME)
    assert (ops(after), log.applied) == ({"MatMulNBits": 2, "Add": 1}, 2)
    assert len(after.graph.initializer) == 3
    feeds = {"x": array(3, 96), "x2": array(3, 96, seed=1)}
    stored = dense(after, Layout(4, 32, False), 96)
    np.testing.assert_allclose(run(after, feeds), (feeds["x"] + feeds["x2"]) @ stored.T, rtol=1e-4, atol=1e-4)


def branch(name: str, nodes, out: str, **kwargs):
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, 1, None)], **kwargs)


def test_subgraphs() -> None:
    inner = [numpy_helper.from_array(array(96, 24, seed=5), "w2")]
    then = branch("then", [node("MatMul", ["x", "w"], ["t"])], "t")
    last = [node("MatMul", ["x", "w2"], ["e0"]), node("MatMul", ["x", "w"], ["e1"]), node("Add", ["e0", "e1"], ["e"])]
    nodes = [node("If", ["cond"], ["y"], then_branch=then, else_branch=branch("else", last, "e", initializer=inner))]
    before = model(nodes, {"x": [3, 96], "cond": []}, {"y": [3, 24]}, {"w": array(96, 24)}, types={"cond": 9})
    after, log = run_pass(before, NAME, bits=8)
    assert log.applied == 2
    assert sorted(initializers(after)) == ["w_blocks", "w_scales", "w_zero_points"]
    for cond in (True, False):
        feeds = {"x": array(3, 96), "cond": np.asarray(cond)}
        np.testing.assert_allclose(run(after, feeds), run(before, feeds), atol=0.4)


def test_constant_nodes_and_functions() -> None:
    constant = node("Constant", [], ["w"], value=numpy_helper.from_array(array(96, 24)))
    flat = model([constant, node("MatMul", ["x", "w"], ["y"])], {"x": [3, 96]}, {"y": [3, 24]})
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "Block", ["x"], ["y"], [constant, node("Gemm", ["x", "w"], ["y"])], imports)
    called = model(
        [helper.make_node("Block", ["x"], ["y"], domain="local")], {"x": [3, 96]}, {"y": [3, 24]}, functions=[function], opsets={"local": 1}
    )
    for before in (flat, called):
        after, log = run_pass(before, NAME, bits=8)
        assert log.applied == 1
        assert len(after.SerializeToString()) < 0.5 * len(before.SerializeToString())
        np.testing.assert_allclose(run(after, {"x": array(3, 96)}), run(before, {"x": array(3, 96)}), atol=0.4)


def test_float16() -> None:
    before = product(dtype="float16")
    after, _ = run_pass(before, NAME, bits=8)
    assert initializers(after)["w_scales"].dtype == np.float16
    x = array(1, 3, 96, dtype="float16")
    expected = x[0].astype(np.float64) @ dense(after, Layout(8, 32, False), 96).T
    np.testing.assert_allclose(run(after, {"x": x})[0], expected, rtol=2e-2, atol=2e-2)
    refused(product(dtype="float64"), "the weight is DOUBLE")


# --- what is refused ------------------------------------------------------------------------------------------------


def test_other_consumers_outputs_and_callers() -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("ReduceMax", ["w"], ["z"], keepdims=0)]
    shapes, weights = {"x": [3, 96]}, {"w": array(96, 24)}
    refused(model(nodes, shapes, ["y", "z"], weights), "also consumed by ReduceMax")
    refused(model(nodes[:1], shapes, {"y": None, "w": [96, 24]}, weights), "also a graph output")
    refused(model(nodes[:1], shapes, ["y"], weights, overridable=["w"]), "a caller may override it")
    left = [node("MatMul", ["w", "x"], ["y"])]
    refused(model(left, {"x": [24, 3]}, ["y"], weights), "on the left")
    turned = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])]
    refused(model(turned, {"x": [3, 24]}, {"y": None, "t": [24, 96]}, weights), "transposed, is also a graph output")
    both = [node("MatMul", ["x", "w"], ["a"]), node("Gemm", ["x", "w"], ["b"], transB=1), node("Add", ["a", "b"], ["y"])]
    refused(model(both, {"x": [3, 64]}, ["y"], {"w": array(64, 64)}), "both by rows and by columns")
    rows = [node("MatMul", ["x", "w"], ["y"]), node("Gather", ["w", "i"], ["z"])]
    refused(model(rows, {"x": [3, 96], "i": [2]}, ["y", "z"], weights, types={"i": 7}), "both by rows and by columns")


def test_products_that_no_kernel_computes() -> None:
    refused(product("MatMul", weights={"w": array(2, 96, 24)}), "3 dimensions, not 2")
    refused(model([node("MatMul", ["x", "w"], ["y"])], {"x": [96]}, ["y"], {"w": array(96, 24)}), "unknown or below 2")
    for attributes, reason in (({"transA": 1}, "is transposed"), ({"alpha": 2.0}, "by alpha")):
        shape = [96, 3] if "transA" in attributes else [3, 96]
        refused(model([node("Gemm", ["x", "w"], ["y"], **attributes)], {"x": shape}, ["y"], {"w": array(96, 24)}), reason)
    scaled = model([node("Gemm", ["x", "w", "b"], ["y"], beta=2.0)], {"x": [3, 96]}, ["y"], {"w": array(96, 24), "b": array(24)})
    refused(scaled, "by beta")
    refused(model([node("MatMul", ["v", "w"], ["y"])], {}, ["y"], {"w": array(96, 24), "v": array(3, 96)}), "both inputs are constant")


def test_sizes_that_do_not_suit() -> None:
    refused(product("MatMul", 8, 200), "with 8 numbers a row, blocks of 128 would take more", block_size=128, bits=8)
    table = [node("Gather", ["w", "i"], ["y"])]
    refused(model(table, {"i": [2]}, ["y"], {"w": array(50, 97)}, types={"i": 7}), "97 numbers does not end with a byte")
    tied = [*table, node("Gemm", ["y", "w"], ["z"], transB=1)]
    refused(model(tied, {"i": [2]}, ["y", "z"], {"w": array(50, 100)}, types={"i": 7}), "no multiple of the block size 32")
    columns = [node("Gather", ["w", "i"], ["y"], axis=1)]
    refused(model(columns, {"i": [2]}, ["y"], {"w": array(50, 96)}, types={"i": 7}), "does not read rows")
    broken = array(96, 24)
    broken[3, 4] = np.inf
    refused(product(weights={"w": broken}), "would not be finite")


def test_opsets_without_the_standard_form() -> None:
    refused(product(opset=20), "opset 20 has no DequantizeLinear with a block size (21 has)", form="standard")


def test_small_weights_and_activations_are_no_match() -> None:
    for before in (
        product("MatMul", 30, 30),
        model([node("MatMul", ["x", "x2"], ["y"])], {"x": [96, 96], "x2": [96, 96]}, ["y"]),
    ):
        after, log = run_pass(before, NAME)
        assert (ops(after), log.refusals) == ({"MatMul": 1}, [])


# --- GPTQ and replays -----------------------------------------------------------------------------------------------


def chain() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["r"]), node("Gemm", ["r", "v"], ["y"], transB=1)]
    return model(nodes, {"x": [None, 96]}, {"y": [None, 40]}, {"w": array(96, 64), "v": array(40, 64, seed=2)})


def quantized(proto: onnx.ModelProto, tools: Tools, allow=None, **options) -> tuple[onnx.ModelProto, ChangeLog]:
    graph = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    log = ChangeLog(NAME, allow)
    REGISTRY.get(NAME).configure({k.replace("_", "-"): v for k, v in options.items()}).run(Context(graph, log, tools=tools))
    drop_inferred(graph)
    return ir.to_proto(graph), log


def calibrated(proto: onnx.ModelProto) -> tuple[Tools, np.ndarray]:
    data = array(600, 6, seed=11) @ array(6, 96, seed=12) + 0.2 * array(600, 96, seed=13)
    return Tools(Calibration.open(list(data[:500].reshape(10, 50, 96)), ir.from_proto(proto))), data[500:]


@pytest.mark.parametrize("order", [True, False])
def test_gptq_comes_closer_than_rounding(order: bool) -> None:
    before = chain()
    tools, unseen = calibrated(before)
    expected = run(before, {"x": unseen})
    errors = {}
    for method in ("rtn", "hqq", "gptq"):
        after, log = quantized(before, tools, method=method, act_order=order)
        assert ops(after) == {"MatMulNBits": 2, "Relu": 1}
        errors[method] = float(((run(after, {"x": unseen}) - expected) ** 2).sum())
    assert errors["gptq"] < 0.6 * min(errors["rtn"], errors["hqq"])
    assert "times that without GPTQ" in log.notes[0]


def test_only_gptq_calibrates() -> None:
    of = REGISTRY.get(NAME).configure
    assert [of({"method": m}).calibrates for m in ("rtn", "hqq", "gptq")] == [False, False, True]


def test_products_whose_inputs_are_not_observed() -> None:
    then = branch("then", [node("MatMul", ["x", "w"], ["t"])], "t")
    other = branch("else", [node("Neg", ["z"], ["e"])], "e")
    nodes = [node("If", ["cond"], ["y"], then_branch=then, else_branch=other)]
    before = model(nodes, {"x": [3, 96], "z": [3, 24], "cond": []}, {"y": [3, 24]}, {"w": array(96, 24)}, types={"cond": 9})
    after, log = quantized(before, Tools(), method="gptq")
    assert log.applied == 2
    assert "what 1 of them multiply is not known" in log.notes[0]
    assert ops(after) == {"If": 1}


def test_a_replay_takes_what_was_worked_out() -> None:
    """Units are held back one by one, and nothing is rounded twice."""
    before, tools = chain(), Tools()
    first, log = quantized(before, tools, mixed="no")
    assert log.asked == 2
    known = dict(tools.known)
    assert len(known) == 2
    held, log = quantized(before, tools, allow=lambda number: number != 0, mixed="no")
    assert ops(held) == {"MatMul": 1, "MatMulNBits": 1, "Relu": 1}
    assert tools.known == known
    assert [label for _, label in log.numbered] == ["y"]
    again, _ = quantized(before, tools, mixed="no")
    assert again.SerializeToString() == first.SerializeToString()
    quantized(before, tools, mixed="no", symmetric="true")
    assert len(tools.known) == 4


@pytest.mark.parametrize("held", [(), (0,), (1,), (2,), (0, 1), (0, 3), (0, 1, 2, 3)])
def test_what_is_held_back_from_four_bits_gets_eight(held: tuple[int, ...]) -> None:
    """Numbers 0 and 2 are the weights in 4 bits, 1 and 3 those in 8; whatever is held back, they stay that."""
    after, log = quantized(chain(), Tools(), allow=lambda number: number not in held)
    bits = [next((a.i for a in n.attribute if a.name == "bits"), 32) for n in after.graph.node if n.op_type != "Relu"]
    assert bits == [4 if few not in held else 8 if few + 1 not in held else 32 for few in (0, 2)]
    assert log.asked == 4
    labels = {0: "a, 4 bits", 1: "a", 2: "y, 4 bits", 3: "y"}
    assert log.numbered == [(n, label) for n, label in labels.items() if n not in held]
    if sorted(bits) == [4, 8]:
        assert log.notes[0].startswith("1 in 4 bits and 1 in 8 bits in blocks of 32")


def test_where_eight_bits_would_not_be_smaller() -> None:
    after, log = quantized(product("MatMul", 9, 200), Tools(), block_size=32)
    assert (ops(after), log.asked) == ({"MatMulNBits": 1}, 1)
