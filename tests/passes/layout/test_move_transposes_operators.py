"""What each operator becomes in another layout, with the numbers to prove it."""

import numpy as np
import pytest
from onnx import TensorProto

from tests.passes.layout.transposes import first, last, t
from tests.support import array, assert_same, model, node, ops, run_pass

ROUNDING = "move-transposes-across-functions"


def check(nodes, left, weights=None, *, name="move-transposes", opset=17, shape=(2, 3, 4, 5), rtol=1e-5):
    for dims in (["N", *shape[1:]], list(shape)):
        before = model(nodes, {"x": dims}, [nodes[-1].output[0]], weights, opset=opset)
        after, log = run_pass(before, name)
        assert ops(after)["Transpose"] == left and (log.applied > 0) == (left < ops(before)["Transpose"])
        assert_same(before, after, {"x": array(*shape)}, exact=name == "move-transposes", rtol=rtol)


def i64(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


SAME_RANK = [
    ([node("Concat", ["a", "a"], ["b"], axis=-1)], 17),
    ([node("Concat", ["a", "c"], ["b"], axis=1)], 17),
    ([node("Split", ["a", "parts"], ["p", "q"], axis=2), node("Concat", ["q", "p"], ["b"], axis=2)], 17),
    ([node("Split", ["a"], ["p", "q"], axis=1, split=[1, 3]), node("Concat", ["q", "p"], ["b"], axis=1)], 11),
    ([node("Pad", ["a", "pads"], ["b"])], 17),
    ([node("Pad", ["a", "pads", "value"], ["b"], mode="constant")], 17),
    ([node("Pad", ["a", "two", "", "axes"], ["b"], mode="reflect")], 18),
    ([node("Pad", ["a"], ["b"], pads=[0, 1, 2, 0, 0, 3, 4, 1])], 9),
    ([node("Slice", ["a", "s", "e", "ax", "st"], ["b"])], 17),
    ([node("Slice", ["a", "s", "e"], ["b"])], 17),
    ([node("Slice", ["a"], ["b"], starts=[1, 0], ends=[3, -1], axes=[1, 3])], 9),
    ([node("Gather", ["a", "order"], ["b"], axis=-1)], 17),
    ([node("Gather", ["a", "one"], ["g"], axis=2), node("Unsqueeze", ["g", "two_"], ["b"])], 17),
    ([node("Tile", ["a", "reps"], ["b"])], 17),
    ([node("Expand", ["small", "shape"], ["b"])], 17),
    ([node("Where", ["cond", "a", "value"], ["b"])], 17),
    ([node("Greater", ["a", "c"], ["g"]), node("Where", ["g", "a", "c"], ["b"])], 17),
    ([node("Max", ["a", "c", "vector"], ["b"])], 17),
    ([node("ReduceMax", ["a"], ["m"], axes=[-1]), node("Sub", ["a", "m"], ["b"])], 17),
    ([node("ReduceMin", ["a", "axes"], ["m"], keepdims=1), node("Sub", ["a", "m"], ["b"])], 18),
    ([node("ReduceMax", ["a"], ["m"], keepdims=1), node("Sub", ["a", "m"], ["b"])], 17),
    ([node("ArgMax", ["a"], ["m"], axis=3), node("Cast", ["m"], ["f"], to=1), node("Add", ["a", "f"], ["b"])], 17),
    ([node("GatherElements", ["a", "elements"], ["b"], axis=2)], 17),
    ([node("QuantizeLinear", ["a", "scales", "zeros"], ["q"], axis=3),
      node("DequantizeLinear", ["q", "scales", "zeros"], ["b"], axis=3)], 17),
    ([node("QuantizeLinear", ["a", "scale", "zero"], ["q"]), node("DequantizeLinear", ["q", "scale", "zero"], ["b"])], 17),
    ([node("Cast", ["a"], ["h"], to=TensorProto.DOUBLE), node("CastLike", ["h", "value"], ["b"])], 17),
    ([node("Reshape", ["a", "cut"], ["r"]), node("Relu", ["r"], ["u"]), node("Reshape", ["u", "whole"], ["b"])], 17),
]


@pytest.mark.parametrize("between, opset", SAME_RANK, ids=lambda v: "-".join(n.op_type for n in v) if isinstance(v, list) else str(v))
def test_of_one_rank(between, opset) -> None:
    weights = {
        "c": array(2, 4, 5, 3, seed=2), "parts": i64(2, 3), "zero": np.uint8(3),
        "pads": i64(0, 1, 0, 1, 0, 2, 3, 0), "value": np.float32(0.5), "two": i64(1, 2, 2, 1),
        "axes": i64(2, -3), "s": i64(3, -1), "e": i64(-9, 1), "ax": i64(1, -1), "st": i64(-1, -2), "order": i64(2, 0, -1),
        "one": i64(1)[0],
        "two_": i64(2), "reps": i64(1, 2, 1, 3), "small": array(2, 4, 1, 3), "shape": i64(5, 3), "cond": array(4, 5, 1) > 0,
        "vector": array(3), "elements": np.random.default_rng(0).integers(0, 5, (2, 4, 5, 3)),
        "scales": array(3, low=0.1), "zeros": np.zeros(3, np.uint8),
        "scale": np.float32(0.1), "cut": i64(0, 2, 2, 5, 3), "whole": i64(0, 4, 5, 3),
    }
    if between[-1].op_type == "Expand":
        between = [node("ReduceMax", ["a"], ["small"], axes=[2], keepdims=1), *between]
        weights.pop("small")
    used = {n for b in between for n in b.input}
    nodes = [last("x", "a"), *between, first("b", "d"), node("Neg", ["d"], ["y"])]
    check(nodes, 0, {k: v for k, v in weights.items() if k in used}, opset=opset)


FEWER_AXES = [
    ([node("ReduceMax", ["a"], ["y"], axes=[1, 2], keepdims=0)], 0),
    ([node("ReduceMax", ["a"], ["y"], axes=[3], keepdims=0)], 0),
    ([node("ReduceMax", ["a"], ["y"], keepdims=0)], 0),
    ([node("ArgMin", ["a"], ["m"], axis=-1, keepdims=0), node("Cast", ["m"], ["y"], to=1)], 0),
    ([node("ReduceMin", ["a"], ["m"], axes=[1, 2], keepdims=1), node("Squeeze", ["m", "hw"], ["y"])], 0),
    ([node("ReduceMin", ["a"], ["m"], axes=[1, 2], keepdims=1), node("Flatten", ["m"], ["y"])], 0),
    ([node("ReduceMin", ["a"], ["m"], axes=[1, 2], keepdims=1), node("Reshape", ["m", "nc"], ["y"])], 0),
    ([node("Reshape", ["a", "rows"], ["r"]), node("Relu", ["r"], ["u"]), t("u", "y", 0, 2, 1)], 0),
    ([node("Gather", ["a", "index"], ["g"], axis=1), t("g", "y", 0, 2, 1)], 0),
    ([node("Gather", ["a", "table"], ["g"], axis=3), t("g", "y", 0, 3, 4, 1, 2)], 0),
    ([node("Unsqueeze", ["a", "ones"], ["u"]), node("Concat", ["u", "u"], ["v"], axis=1),
      t("v", "w", 0, 1, 4, 2, 3), node("Neg", ["w"], ["y"])], 0),
    ([node("Reshape", ["a", "mixed"], ["y"])], 1),
    ([node("Reshape", ["a", "flat"], ["y"])], 1),
]


@pytest.mark.parametrize("behind, left", FEWER_AXES, ids=lambda v: "-".join(n.op_type for n in v) if isinstance(v, list) else str(v))
def test_of_other_ranks(behind, left) -> None:
    weights = {
        "hw": i64(1, 2), "nc": i64(-1, 3), "rows": i64(0, -1, 3), "index": i64(1)[0], "table": i64(0, 2, 1, 1).reshape(2, 2),
        "ones": i64(1), "mixed": i64(0, 4, 15), "flat": i64(0, -1),
    }
    used = {n for b in behind for n in b.input}
    check([last("x", "a"), *behind], left, {k: v for k, v in weights.items() if k in used})


AS_ROUNDED = [
    [node("Sigmoid", ["a"], ["s"]), node("Mul", ["s", "a"], ["b"])],
    [node("Softmax", ["a"], ["b"], axis=1)],
    [node("ReduceMean", ["a"], ["m"], axes=[1, 2]), node("Pow", ["m", "two"], ["p"]), node("Add", ["a", "p"], ["b"])],
    [node("ReduceSum", ["a", "channels"], ["m"]), node("Div", ["a", "m"], ["b"])],
    [node("Sum", ["a", "c", "vector"], ["b"])],
    [node("CumSum", ["a", "axis"], ["b"])],
    [node("Resize", ["a", "", "scales"], ["b"], mode="linear")],
    [node("Resize", ["a", "", "", "sizes"], ["b"], mode="nearest")],
    [node("LpNormalization", ["a"], ["b"], axis=-1)],
]


@pytest.mark.parametrize("between", AS_ROUNDED, ids=lambda v: "-".join(n.op_type for n in v))
def test_where_rounding_may_differ(between) -> None:
    weights = {
        "two": np.float32(2), "channels": i64(3), "c": array(1, 4, 5, 3), "vector": array(3), "axis": np.asarray(-2),
        "sizes": i64(2, 8, 10, 3), "scales": np.float32([1, 2, 2, 1]),
    }
    used = {n for b in between for n in b.input}
    weights = {k: v for k, v in weights.items() if k in used}
    nodes = [last("x", "a"), *between, first("b", "c_"), node("Neg", ["c_"], ["y"])]
    check(nodes, 0, weights, name=ROUNDING, rtol=1e-4)
    assert ops(run_pass(model(nodes, {"x": [2, 3, 4, 5]}, ["y"], weights), "move-transposes")[0])["Transpose"] > 0


def test_softmax_stays_along_the_last_axis() -> None:
    """Its kernel works along the last one only, and would transpose by itself."""
    check([last("x", "a"), node("Softmax", ["a"], ["b"]), first("b", "y")], 2, name=ROUNDING)


def test_batches_of_matrices() -> None:
    def product(other, back, left, *perm):
        check([t("x", "a", *perm), node("MatMul", ["a", "w"], ["b"]), t("b", "y", *back)], left, {"w": other}, name=ROUNDING)

    product(array(5, 6), (1, 2, 0, 3), 0, 2, 0, 1, 3)
    product(array(4, 2, 5, 6), (1, 2, 0, 3), 2, 2, 0, 1, 3)
    product(array(3, 2, 5, 6), (1, 0, 2, 3), 0, 1, 0, 2, 3)
    product(array(4, 6), (0, 1, 3, 2), 2, 0, 1, 3, 2)


@pytest.mark.parametrize("perm, left", [((0, 1, 3, 2), 0), ((0, 2, 1, 3), 2)])
def test_normalization_keeps_its_channels(perm, left) -> None:
    weights = {n: array(perm and (3, 4)[perm[1] == 2], low=0.5, seed=i) for i, n in enumerate(("g", "b", "m", "v"))}
    nodes = [t("x", "a", *perm), node("BatchNormalization", ["a", "g", "b", "m", "v"], ["c"]), t("c", "y", *perm)]
    check(nodes, left, weights, name=ROUNDING)
