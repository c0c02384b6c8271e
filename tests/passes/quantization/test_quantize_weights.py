"""int8 weights: where the scales lie, what is shared, what is refused, how far the numbers move."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.support import array, model, node, ops, reasons, run_pass, session

NAME = "quantize-weights"


def one(op: str, w, x, *, opset=17, dtype="float32", place=1, y=None, weights=None, **attributes):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = ["x", "w"] if place else ["w", "x"]
    return model(
        [node(op, inputs, ["y"], **attributes)],
        {"x": x},
        {"y": y},
        {"w": np.asarray(w, dtype), **(weights or {})},
        opset=opset,
        types={"x": kind if op != "Gather" else 7, "y": kind},
    )


def initializers(proto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def close(before, after, feeds, snr: float = 30.0) -> None:
    """The outputs agree to `snr` dB, in name, type and shape exactly."""
    a, b = session(before), session(after)
    for want, got in zip(a.run(None, feeds), b.run(None, feeds)):
        assert want.dtype == got.dtype
        assert want.shape == got.shape
        error = got.astype(np.float64) - want.astype(np.float64)
        assert 10 * np.log10((want.astype(np.float64) ** 2).sum() / (error**2).sum()) > snr


def refused(before, reason: str, **options) -> None:
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


@pytest.mark.parametrize(
    ("op", "w", "x", "axis", "attributes"),
    [
        ("Conv", (32, 8, 3, 3), (1, 8, 6, 6), 0, {}),
        ("Conv", (512, 1, 3), (1, 512, 9), 0, {"group": 512}),
        ("ConvTranspose", (16, 24, 3, 3), (1, 16, 5, 5), 1, {}),
        ("ConvTranspose", (64, 4, 3, 3), (1, 64, 5, 5), 0, {"group": 4}),
        ("Gemm", (40, 30), (3, 40), 1, {}),
        ("Gemm", (40, 30), (3, 30), 0, {"transB": 1}),
        ("MatMul", (40, 30), (2, 3, 40), 1, {}),
        ("MatMul", (4, 20, 30), (4, 3, 20), 2, {}),
    ],
)
def test_the_scales_follow_the_output_channels(op: str, w, x, axis: int, attributes) -> None:
    weight = array(*w) * np.exp(array(w[axis], seed=9)).reshape([-1 if i == axis else 1 for i in range(len(w))])
    before = one(op, weight, x, **attributes)
    after, log = run_pass(before, NAME)
    assert ops(after) == {"DequantizeLinear": 1, op: 1}
    found = initializers(after)
    assert sorted(found) == ["w_int8", "w_scale"]
    top = np.abs(weight).max(axis=tuple(i for i in range(len(w)) if i != axis))
    np.testing.assert_allclose(found["w_scale"], top / 127, rtol=1e-6)
    assert found["w_int8"].dtype == np.int8
    assert found["w_int8"].min() >= -127
    assert "1 weights" in log.notes[0]
    close(before, after, {"x": array(*x, seed=3)})


def test_a_weight_on_the_left() -> None:
    before = one("MatMul", array(40, 30), (30, 3), place=0)
    after, _ = run_pass(before, NAME)
    assert initializers(after)["w_scale"].shape == (40,)
    close(before, after, {"x": array(30, 3)})


@pytest.mark.parametrize("indices", [(3,), (2, 5), ()])
def test_rows_of_a_table_are_dequantized_after_they_are_read(indices) -> None:
    before = one("Gather", array(100, 32), list(indices), place=0, y=[*indices, 32])
    after, _ = run_pass(before, NAME)
    assert [n.op_type for n in after.graph.node] == ["Gather", "DequantizeLinear"]
    assert after.graph.node[-1].output[0] == "y"
    assert initializers(after)["w_scale"].shape == (32,)
    close(before, after, {"x": np.full(indices, 7, np.int64)})


def test_a_table_that_is_read_twice() -> None:
    nodes = [node("Gather", ["t", "x"], ["a"]), node("Gather", ["t", "x2"], ["b"], axis=0), node("Add", ["a", "b"], ["y"])]
    before = model(nodes, {"x": [3], "x2": [3]}, {"y": [3, 32], "a": [3, 32]}, {"t": array(100, 32)}, types={"x": 7, "x2": 7})
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Gather": 2, "DequantizeLinear": 2, "Add": 1}
    assert len(after.graph.initializer) == 2
    close(before, after, {"x": np.asarray([1, 2, 3]), "x2": np.asarray([7, 8, 9])})


def test_a_shared_weight_is_quantized_once() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Gemm", ["x2", "w"], ["b"]), node("Add", ["a", "b"], ["y"])]
    before = model(nodes, {"x": [3, 40], "x2": [3, 40]}, {"y": [3, 30]}, {"w": array(40, 30)})
    after, log = run_pass(before, NAME)
    assert ops(after) == {"DequantizeLinear": 1, "MatMul": 1, "Gemm": 1, "Add": 1}
    assert log.applied == 1
    close(before, after, {"x": array(3, 40), "x2": array(3, 40, seed=1)})


def branch(name: str, nodes, out: str, **kwargs):
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, 1, None)], **kwargs)


def test_subgraphs() -> None:
    inner = [numpy_helper.from_array(array(40, 30, seed=5), "w2")]
    then = branch("then", [node("MatMul", ["x", "w"], ["t"])], "t")
    other = branch(
        "else",
        [node("MatMul", ["x", "w2"], ["e0"]), node("MatMul", ["x", "w"], ["e1"]), node("Add", ["e0", "e1"], ["e"])],
        "e",
        initializer=inner,
    )
    before = model(
        [node("If", ["cond"], ["y"], then_branch=then, else_branch=other)],
        {"x": [3, 40], "cond": []},
        {"y": [3, 30]},
        {"w": array(40, 30)},
        types={"cond": 9},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 2
    assert sorted(initializers(after)) == ["w_int8", "w_scale"]
    for cond in (True, False):
        close(before, after, {"x": array(3, 40), "cond": np.asarray(cond)})


@pytest.mark.parametrize("op", ["MatMul", "Gather"])
def test_constant_nodes_and_functions(op: str) -> None:
    constant = node("Constant", [], ["w"], value=numpy_helper.from_array(array(40, 30)))
    use = node("MatMul", ["x", "w"], ["y"]) if op == "MatMul" else node("Gather", ["w", "x"], ["y"])
    kind, x = (1, array(3, 40)) if op == "MatMul" else (7, np.asarray([1, 2, 3]))
    flat = model([constant, use], {"x": x.shape}, {"y": [3, 30]}, types={"x": kind})
    function = helper.make_function("local", "Block", ["x"], ["y"], [constant, use], [helper.make_opsetid("", 17)])
    called = model(
        [helper.make_node("Block", ["x"], ["y"], domain="local")],
        {"x": x.shape},
        {"y": [3, 30]},
        functions=[function],
        opsets={"local": 1},
        types={"x": kind},
    )
    for before in (flat, called):
        after, log = run_pass(before, NAME)
        assert log.applied == 1
        assert len(after.SerializeToString()) < 0.5 * len(before.SerializeToString())
        close(before, after, {"x": x}, snr=25)


def test_zeros_and_tiny_channels() -> None:
    weight = array(40, 30)
    weight[:, 3], weight[:, 4] = 0, 1e-41
    before = one("MatMul", weight, (3, 40))
    after, _ = run_pass(before, NAME)
    assert (initializers(after)["w_int8"][:, 3:5] == 0).all()
    assert np.isfinite(initializers(after)["w_scale"]).all()
    close(before, after, {"x": array(3, 40)})


@pytest.mark.parametrize("opset", [10, 12, 13, 21])
def test_one_scale_a_weight(opset: int) -> None:
    before = one("MatMul", array(40, 30), (3, 40), opset=opset)
    after, _ = run_pass(before, NAME, granularity="tensor")
    assert initializers(after)["w_scale"].shape == ()
    close(before, after, {"x": array(3, 40)})


def test_float16_weights() -> None:
    refused(one("MatMul", array(40, 30), (3, 40), dtype="float16"), "does not give FLOAT16 at opset 17 (19 does)")
    before = one("MatMul", array(40, 30) * 0.01, (3, 40), dtype="float16", opset=19)
    after, _ = run_pass(before, NAME)
    assert initializers(after)["w_scale"].dtype == np.float16
    close(before, after, {"x": array(3, 40, dtype="float16")})


def test_opsets_without_scales_a_channel() -> None:
    refused(one("MatMul", array(40, 30), (3, 40), opset=12), "opset 12 has no scale per channel")
    refused(one("MatMul", array(40, 30), (3, 40), opset=9), "opset 9 has no DequantizeLinear", granularity="tensor")
    refused(one("MatMul", array(40, 30), (3, 40), dtype="float64"), "double precision")


def test_small_weights_are_no_match() -> None:
    before = one("MatMul", array(30, 30), (3, 30))
    after, log = run_pass(before, NAME)
    assert ops(after) == {"MatMul": 1}
    assert log.refusals == []
    after, _ = run_pass(before, NAME, min_elements=900)
    assert ops(after)["DequantizeLinear"] == 1


def test_activations_are_no_match() -> None:
    before = model([node("MatMul", ["x", "x2"], ["y"])], {"x": [40, 40], "x2": [40, 40]}, ["y"])
    _, log = run_pass(before, NAME)
    assert log.refusals == []


def test_other_consumers_outputs_and_callers() -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("ReduceMax", ["w"], ["z"], keepdims=0)]
    refused(model(nodes, {"x": [3, 40]}, ["y", "z"], {"w": array(40, 30)}), "also consumed by ReduceMax")
    refused(model(nodes[:1], {"x": [3, 40]}, {"y": None, "w": [40, 30]}, {"w": array(40, 30)}), "also a graph output")
    refused(model(nodes[:1], {"x": [3, 40]}, ["y"], {"w": array(40, 30)}, overridable=["w"]), "a caller may override it")
    both = [node("MatMul", ["x", "w"], ["y"]), node("Gather", ["w", "i"], ["z"])]
    refused(model(both, {"x": [3, 40], "i": [2]}, ["y", "z"], {"w": array(40, 30)}, types={"i": 7}), "also consumed by Gather")


def test_a_table_that_is_not_read_by_rows() -> None:
    refused(one("Gather", array(40, 30), [3], place=0, y=[40, 3], axis=1), "does not read rows")


def test_no_gain_and_too_much_noise() -> None:
    refused(one("Conv", array(1024, 1, 1, 1), (1, 1024, 4, 4), group=1024), "more than the weight saves")
    weight = array(40, 30)
    refused(one("MatMul", weight, (3, 40)), "signal-to-noise ratio would be", min_snr=60.0)
    weight[0] = np.inf
    refused(one("MatMul", weight, (3, 40)), "not be finite")
