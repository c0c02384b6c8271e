"""Constant scales and shifts that are not next to weights: how far they move, and what stops them."""

import numpy as np
import pytest
from onnx import helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "move-affine-to-weights"
X = (2, 3, 6, 6)
C = array(4, seed=5, low=0.5).reshape(4, 1, 1)
I64 = np.int64


def moved(before, feed=X, left=None, **kwargs) -> None:
    """One node goes, and the numbers stay."""
    after, log = run_pass(before, NAME)
    assert sum(ops(after).values()) == sum(ops(before).values()) - 1, reasons(log)
    if left:
        assert ops(after) == left
    assert_same(before, after, {"x": array(*feed)}, **kwargs)


def refused(before, reason: str, **options) -> None:
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


def stays(before) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and log.refusals == []


def behind(path, affine=("Mul", C), *, bias=True, x=X, outputs=("y",), conv=None, more=(), weights=(), **kwargs):
    """Conv, `path` from c to p, and the affine function behind it."""
    kind, constant = affine
    tensors = {"w": array(4, 3, 3, 3), "m": np.asarray(constant, np.float32), **({"k": array(4, seed=2)} if bias else {}), **dict(weights)}
    nodes = [node("Conv", ["x", "w", *(["k"] if bias else [])], ["c"], **(conv or {"pads": [1] * 4})), *path]
    last = path[-1].output[0] if path else "c"
    nodes += [node(kind, [last, "m"], ["y"]), *more]
    return model(nodes, {"x": x}, dict.fromkeys(outputs), tensors, **kwargs)


def before_it(path, affine=("Mul", array(3, seed=5, low=0.5).reshape(3, 1, 1)), *, conv=None, w=(4, 3, 3, 3), x=X, bias=True, weights=()):
    """An affine function, `path` from s to p, and a Conv behind it."""
    kind, constant = affine
    tensors = {"w": array(*w), "m": np.asarray(constant, np.float32), **({"k": array(w[0], seed=2)} if bias else {}), **dict(weights)}
    last = path[-1].output[0]
    nodes = [node(kind, ["x", "m"], ["s"]), *path, node("Conv", [last, "w", *(["k"] if bias else [])], ["y"], **(conv or {}))]
    return model(nodes, {"x": x}, {"y": [None] * 4}, tensors)


RESHAPE = [node("Reshape", ["c", "shape"], ["p"])]


# --- backwards ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "constant"),
    [
        ([0, 4, -1], array(4, 1, low=0.5)),
        ([0, 2, -1], np.float32(0.3)),
        ([2, 2, 2, 36], array(2, 2, 1, low=0.5)),
        ([2, 2, 2, 36], array(2, 1, low=0.5)),
        ([2, 2, 2, 36], array(2, 1, 1, low=0.5)),
        ([2, 4, 1, 6, 6], array(4, 1, 1, 1, low=0.5)),
        ([1, 2, 4, 36], array(1, 1, 4, 1, low=0.5)),
    ],
)
@pytest.mark.parametrize("kind", ["Mul", "Add", "Div", "Sub"])
@pytest.mark.parametrize("bias", [True, False])
def test_across_a_reshape(shape, constant, kind: str, bias: bool) -> None:
    moved(behind(RESHAPE, (kind, constant), bias=bias, weights={"shape": np.asarray(shape)}))


@pytest.mark.parametrize("path", [
    [node("Transpose", ["c"], ["p"], perm=[0, 2, 3, 1])],
    [node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]), node("Flatten", ["t"], ["p"], axis=3)],
    [node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]), node("Unsqueeze", ["t", "axes"], ["p"])],
    [node("Transpose", ["c"], ["t"], perm=[0, 3, 2, 1]), node("Relu", ["t"], ["p"])],
])  # fmt: skip
def test_channels_last(path) -> None:
    weights = {"axes": np.asarray([0])} if any("axes" in n.input for n in path) else {}
    moved(behind(path, ("Mul", array(4, low=0.5)), weights=weights))


@pytest.mark.parametrize("path", [
    node("Relu", ["c"], ["p"]),
    node("LeakyRelu", ["c"], ["p"], alpha=0.2),
    node("PRelu", ["c", "slope"], ["p"]),
    node("MaxPool", ["c"], ["p"], kernel_shape=[3, 3], pads=[1] * 4),
    node("AveragePool", ["c"], ["p"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    node("GlobalAveragePool", ["c"], ["p"]),
    node("GlobalMaxPool", ["c"], ["p"]),
    node("Pad", ["c", "amounts"], ["p"]),
    node("Resize", ["c", "", "scales"], ["p"], mode="linear"),
    node("Resize", ["c", "", "scales"], ["p"], mode="nearest"),
], ids=lambda n: n.op_type)  # fmt: skip
def test_a_positive_scale(path) -> None:
    known = {"slope": array(4, 1, 1, seed=7), "amounts": np.asarray([0, 0, 1, 0, 0, 0, 0, 2]), "scales": np.float32([1, 1, 2, 2])}
    moved(behind([path], weights={k: v for k, v in known.items() if k in path.input}))


@pytest.mark.parametrize("path", [
    node("MaxPool", ["c"], ["p"], kernel_shape=[3, 3], pads=[1] * 4),
    node("AveragePool", ["c"], ["p"], kernel_shape=[3, 3], pads=[1] * 4),
    node("AveragePool", ["c"], ["p"], kernel_shape=[3, 3], count_include_pad=1),
    node("GlobalAveragePool", ["c"], ["p"]),
    node("Pad", ["c", "amounts"], ["p"], mode="reflect"),
    node("Resize", ["c", "", "scales"], ["p"], mode="linear", coordinate_transformation_mode="align_corners"),
], ids=lambda n: n.op_type)  # fmt: skip
def test_a_shift(path) -> None:
    known = {"amounts": np.asarray([0, 0, 1, 0, 0, 0, 0, 2]), "scales": np.float32([1, 1, 2, 2])}
    moved(behind([path], ("Add", C), bias=False, weights={k: v for k, v in known.items() if k in path.input}))


def test_a_norm_behind_a_concat() -> None:
    parts = {"w1": array(2, 3, 1, 1), "w2": array(4, 3, 3, 3, seed=1), "k2": array(4, seed=2)}
    norm = {p: array(6, seed=i, low=0.5) for i, p in enumerate("SBMV", 20)}
    nodes = [
        node("Conv", ["x", "w1"], ["a"]), node("Conv", ["x", "w2", "k2"], ["b"], pads=[1] * 4),
        node("MaxPool", ["b"], ["q"], kernel_shape=[1, 1]),
        node("Concat", ["a", "q"], ["c"], axis=1), node("BatchNormalization", ["c", *"SBMV"], ["y"]),
    ]  # fmt: skip
    moved(model(nodes, {"x": X}, ["y"], parts | norm), left={"Conv": 2, "MaxPool": 1, "Concat": 1})


def test_behind_a_sum() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]), node("Conv", ["x", "v"], ["b"]), node("Add", ["a", "b"], ["c"]),
        node("Mul", ["c", "m"], ["d"]), node("Sub", ["d", "n"], ["y"]),
    ]  # fmt: skip
    weights = {"w": array(4, 3, 1, 1), "v": array(4, 3, 1, 1, seed=1), "m": C, "n": C}
    before = model(nodes, {"x": X}, ["y"], weights)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 2, "Add": 1}
    assert_same(before, after, {"x": array(*X)})


@pytest.mark.parametrize("scale", [np.float32(0.125), np.float32([0.125]), array(8, low=0.5), array(2, 1, 8, low=0.5)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_queries(scale, bias: bool) -> None:
    """The scale of attention on one of three parts of a product: x W, Reshape, Transpose, Split, Squeeze, Mul."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), *([node("Add", ["k", "a"], ["b"])] if bias else []),
        node("Reshape", ["b" if bias else "a", "shape"], ["r"]), node("Transpose", ["r"], ["t"], perm=[2, 0, 3, 1, 4]),
        node("Split", ["t"], ["q", "v", "u"], axis=0, num_outputs=3), node("Squeeze", ["q", "zero"], ["s"]), node("Mul", ["s", "m"], ["y"]),
        node("Relu", ["v"], ["z"]), node("Neg", ["u"], ["n"]),
    ]  # fmt: skip
    weights = {"w": array(16, 48), "shape": np.asarray([2, 5, 3, 2, 8]), "zero": np.asarray([0]), "m": scale}
    outputs = {"y": [None] * 4, "z": [None] * 5, "n": [None] * 5}
    before = model(nodes, {"x": (2, 5, 16)}, outputs, weights | ({"k": array(48)} if bias else {}), opset=18)
    after, log = run_pass(before, NAME)
    assert ops(after)["Mul"] == 0, reasons(log)
    assert_same(before, after, {"x": array(2, 5, 16)})


def test_symbolic_sizes() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "k"], ["b"]), node("Reshape", ["b", "shape"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3]), node("Div", ["t", "m"], ["y"]),
    ]  # fmt: skip
    for divisor in (np.float32(3), array(8, low=1), array(2, 1, 8, low=1)):
        weights = {"w": array(16, 16), "k": array(16), "shape": np.asarray([0, 0, 2, 8]), "m": divisor}
        before = model(nodes, {"x": ["n", "s", 16]}, {"y": [None] * 4}, weights)
        moved(before, (2, 5, 16), left={"MatMul": 1, "Add": 1, "Reshape": 1, "Transpose": 1})


@pytest.mark.parametrize("attributes", [{}, {"alpha": 0.5, "beta": 2.0}])
def test_gemm_and_transposed_convolution(attributes) -> None:
    nodes = [node("Gemm", ["x", "w", "k"], ["c"], transB=1, **attributes), node("Relu", ["c"], ["r"]), node("Mul", ["r", "m"], ["y"])]
    moved(model(nodes, {"x": (3, 5)}, ["y"], {"w": array(4, 5), "k": array(4), "m": array(4, low=0.5)}), (3, 5))
    nodes = [node("ConvTranspose", ["x", "w"], ["c"], strides=[2, 2]), node("Relu", ["c"], ["r"]), node("Mul", ["r", "m"], ["y"])]
    moved(model(nodes, {"x": X}, ["y"], {"w": array(3, 4, 2, 2), "m": C}))


def test_negation_of_a_convolution() -> None:
    nodes = [node("Conv", ["x", "w", "k"], ["c"]), node("Neg", ["c"], ["y"])]
    moved(model(nodes, {"x": X}, ["y"], {"w": array(4, 3, 3, 3), "k": array(4)}), left={"Conv": 1}, exact=True)


# --- forwards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [
    node("Relu", ["s"], ["p"]),
    node("MaxPool", ["s"], ["p"], kernel_shape=[2, 2]),
    node("Pad", ["s", "amounts"], ["p"]),
    node("Add", ["s", "shift"], ["p"]),
    node("Add", ["shift", "s"], ["p"]),
    node("Sub", ["s", "shift"], ["p"]),
    node("Resize", ["s", "", "scales"], ["p"], mode="linear"),
], ids=lambda n: n.op_type)  # fmt: skip
@pytest.mark.parametrize("pads", [[0] * 4, [1] * 4])
def test_a_scale_into_the_next_convolution(path, pads) -> None:
    known = {"shift": array(3, 1, 1, seed=7), "amounts": np.asarray([0, 0, 1, 0, 0, 0, 0, 2]), "scales": np.float32([1, 1, 2, 2])}
    moved(before_it([path], conv={"pads": pads}, weights={k: v for k, v in known.items() if k in path.input}))


def test_scalars_beside_shifts() -> None:
    """x m + a = (x + a / m) m, for constants of different shapes."""
    for scale, shift in ((np.float32(0.3), array(3, 1, 1)), (np.float32([0.3]), np.float32(2)), (array(3, 1, 1, low=0.5), np.float32([2]))):
        moved(before_it([node("Add", ["s", "shift"], ["p"])], ("Div", scale), conv={"pads": [1] * 4}, weights={"shift": shift}))


@pytest.mark.parametrize("bias", [True, False])
def test_norm_pool_convolution(bias: bool) -> None:
    norm = {p: array(3, seed=i, low=0.5) for i, p in enumerate("SBMV", 20)}
    nodes = [
        node("BatchNormalization", ["x", *"SBMV"], ["s"]), node("MaxPool", ["s"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w", *(["k"] if bias else [])], ["y"]),
    ]  # fmt: skip
    moved(model(nodes, {"x": X}, ["y"], {"w": array(4, 3, 3, 3), **({"k": array(4)} if bias else {}), **norm}))


def test_into_all_consumers() -> None:
    nodes = [
        node("Mul", ["x", "m"], ["s"]), node("Transpose", ["s"], ["t"], perm=[0, 2, 1]), node("MatMul", ["s", "w"], ["a"]),
        node("MatMul", ["t", "v"], ["b"]), node("Add", ["b", "k"], ["z"]), node("Relu", ["a"], ["y"]),
    ]  # fmt: skip
    for scale, count in ((np.float32(3), 1), (array(4, low=0.5), 0)):
        weights = {"m": scale, "w": array(4, 5), "v": array(6, 5, seed=1), "k": array(5)}
        before = model(nodes, {"x": (2, 6, 4)}, {"y": [None] * 3, "z": [None] * 3}, weights)
        after, log = run_pass(before, NAME)
        assert log.applied == count
        assert_same(before, after, {"x": array(2, 6, 4)})


def test_through_concat_and_split() -> None:
    nodes = [
        node("Mul", ["x", "m"], ["s"]), node("Concat", ["x", "s"], ["c"], axis=1), node("Split", ["c", "sizes"], ["a", "b"], axis=1),
        node("Conv", ["a", "w"], ["y"], pads=[1] * 4), node("Conv", ["b", "v"], ["z"], pads=[1] * 4),
    ]  # fmt: skip
    weights = {"m": array(3, 1, 1, low=0.5), "sizes": np.asarray([4, 2]), "w": array(5, 4, 3, 3), "v": array(5, 2, 3, 3)}
    moved(model(nodes, {"x": X}, ["y", "z"], weights))


def test_flattened_into_a_gemm() -> None:
    nodes = [node("Add", ["x", "m"], ["s"]), node("Flatten", ["s"], ["f"]), node("Gemm", ["f", "w"], ["y"], transB=1)]
    moved(model(nodes, {"x": X}, ["y"], {"m": array(3, 1, 1), "w": array(4, 108)}))


# --- what stops them ----------------------------------------------------------------------------------------------


def test_signs() -> None:
    for path in (node("Relu", ["c"], ["p"]), node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2])):
        refused(behind([path], ("Mul", -C)), "only a positive scale")
    refused(behind([node("Relu", ["c"], ["p"])], ("Add", C)), "only a positive scale")
    refused(before_it([node("Add", ["s", "shift"], ["p"])], ("Mul", np.float32(0)), weights={"shift": array(3, 1, 1)}), "only a scale")


def test_borders() -> None:
    pad = node("Pad", ["c", "amounts"], ["p"])
    amounts = {"amounts": np.asarray([0, 0, 1, 0, 0, 0, 0, 2])}
    refused(behind([pad], ("Add", C), weights=amounts), "does not reach")
    refused(behind([node("Pad", ["c", "amounts", "v"], ["p"])], weights=amounts | {"v": np.float32(1)}), "does not reach")
    channels = {"amounts": np.asarray([0, 1, 0, 0, 0, 1, 0, 0])}
    refused(behind([pad], ("Mul", array(6, 1, 1, low=0.5)), weights=channels), "axis of the constant")
    counted = node("AveragePool", ["c"], ["p"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    refused(behind([counted], ("Add", C)), "counts what it pads")
    pool = node("MaxPool", ["s"], ["p"], kernel_shape=[2, 2])
    refused(before_it([pool], ("Add", array(3, 1, 1)), conv={"pads": [1] * 4}), "the convolution pads")


def test_constants_along_other_axes() -> None:
    refused(behind([node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2])], ("Mul", array(5, low=0.5))), "within a window")
    refused(behind([node("Transpose", ["c"], ["p"], perm=[0, 2, 3, 1])], ("Mul", array(6, 1, low=0.5))), "not one value a channel")
    refused(behind(RESHAPE, ("Mul", array(72, low=0.5)), weights={"shape": np.asarray([4, 72])}), "not one value a channel")
    unknown = behind(RESHAPE, ("Mul", array(4, 1, low=0.5)), x=("n", 3, "h", "w"), weights={"shape": np.asarray([-1, 4, 9])})
    refused(unknown, "is not known")
    refused(behind([node("Resize", ["c", "", "s"], ["p"], mode="cubic")], weights={"s": np.float32([1, 1, 2, 2])}), "not linear")


def test_consumers() -> None:
    relu = [node("Relu", ["c"], ["p"])]
    refused(behind(relu, more=[node("Abs", ["p"], ["z"])], outputs=("y", "z")), "consumers")
    refused(behind(relu, outputs=("y", "c")), "also a graph output")
    path = [node("MaxPool", ["c"], ["p", "i"], kernel_shape=[2, 2])]
    refused(behind(path, outputs=("y", "i"), types={"i": 7}), "is used")
    stays(before_it([node("Relu", ["s"], ["r"]), node("Tanh", ["r"], ["p"])]))


def test_one_branch_of_a_concat_has_no_weights() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Concat", ["c", "x"], ["d"], axis=1), node("Mul", ["d", "m"], ["y"])]
    stays(model(nodes, {"x": X}, ["y"], {"w": array(4, 3, 1, 1), "m": array(7, 1, 1, low=0.5)}))


def test_weights() -> None:
    relu = [node("Relu", ["c"], ["p"])]
    refused(behind(relu, overridable=["w"]), "a caller may override it")
    stays(behind(relu, overridable=["m"]))
    shared = behind(relu, more=[node("Conv", ["x", "w"], ["z"])], outputs=("y", "z"))
    refused(shared, "has other consumers", max_growth_bytes=0)
    moved(shared)
    no_bias = [node("MatMul", ["x", "w"], ["c"]), node("Transpose", ["c"], ["t"], perm=[1, 0, 2]), node("Add", ["t", "m"], ["y"])]
    refused(model(no_bias, {"x": (2, 3, 5)}, ["y"], {"w": array(5, 4), "m": array(4)}), "has no bias")


def test_a_spelled_out_normalization_is_left_whole() -> None:
    """Its last factor, which all three products could take, is what the runtime recognizes it by."""
    nodes = [
        node("ReduceMean", ["x"], ["u"], axes=[-1]), node("Sub", ["x", "u"], ["d"]), node("Mul", ["d", "d"], ["q"]),
        node("ReduceMean", ["q"], ["v"], axes=[-1]), node("Add", ["v", "eps"], ["e"]), node("Sqrt", ["e"], ["r"]),
        node("Div", ["d", "r"], ["n"]),
        node("Mul", ["n", "g"], ["s"]), node("MatMul", ["s", "w"], ["y"]), node("MatMul", ["s", "k"], ["z"]),
    ]  # fmt: skip
    weights = {"eps": np.float32(1e-5), "g": array(4, low=0.5), "w": array(4, 4), "k": array(4, 4, seed=1)}
    refused(model(nodes, {"x": (2, 3, 4)}, {"y": [None] * 3, "z": [None] * 3}, weights), "the runtime fuses")


def test_subgraphs_and_functions() -> None:
    def branch(name, nodes, out):
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, 1, None)])

    then = branch("t", [node("Mul", ["r", "m"], ["t1"])], "t1")
    other = branch("e", [node("Neg", ["x"], ["e1"])], "e1")
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["r"]), node("If", ["cond"], ["y"], then_branch=then, else_branch=other)]
    before = model(nodes, {"x": X, "cond": []}, {"y": [None] * 4}, {"w": array(3, 3, 1, 1), "m": C[:3]}, types={"cond": 9})
    refused(before, "different graphs")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types(dtype: str) -> None:
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [node("MatMul", ["x", "w"], ["c"]), node("Relu", ["c"], ["r"]), node("Mul", ["r", "m"], ["y"])]
    weights = {"w": array(5, 4, dtype=dtype), "m": array(4, low=0.5, dtype=dtype)}
    before = model(nodes, {"x": (3, 5)}, ["y"], weights, types={"x": onnx_type, "y": onnx_type})
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"MatMul": 1, "Relu": 1}
    assert_same(before, after, {"x": array(3, 5, dtype=dtype)}, rtol=5e-3 if dtype == "float16" else 1e-12)


def test_a_second_run_changes_nothing() -> None:
    once, _ = run_pass(behind([node("Relu", ["c"], ["p"])]), NAME)
    twice, log = run_pass(once, NAME)
    assert log.applied == 0 and twice.SerializeToString() == once.SerializeToString()


def test_a_scalar_times_a_scalar_is_no_mistake() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Mul", ["r", "k"], ["m"]), node("Neg", ["m"], ["y"])]
    stays(model(nodes, {"x": []}, {"y": []}, {"k": np.float32(2)}))
