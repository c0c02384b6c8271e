"""Operators that move, select or convert nothing: gone where that is proven, kept where it only looks so."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.passes.cleanup.noops import check
from tests.support import array, assert_same, model, node, ops, reasons, run_pass

# --- shapes -----------------------------------------------------------------------------------------------------------

SHAPES = "eliminate-noop-shape-ops"


@pytest.mark.parametrize(
    ("target", "shape", "gone"),
    [
        ([2, 3, 4], [2, 3, 4], True),
        ([2, -1, 4], [2, 3, 4], True),
        ([0, 0, -1], ["n", "m", 4], True),
        ([0, 3, -1], ["n", 3, "k"], True),
        ([0, -1], ["n", 3, 4], False),
        ([-1, 3, 4], ["n", 3, 4], True),
        ([4, 3, 2], [2, 3, 4], False),
        ([2, 3, 4], ["n", 3, 4], False),
        ([1, 2, 3, 4], [2, 3, 4], False),
        ([-1], ["n"], True),
        ([-1], [2, 3], False),
    ],
)
def test_reshape_to_a_constant(target, shape, gone) -> None:
    sizes = {"n": 2, "m": 3, "k": 4}
    feeds = {"x": array(*[sizes.get(d, d) for d in shape])}
    check(SHAPES, [node("Reshape", ["first", "s"], ["a"])], {"x": shape}, {"s": np.asarray(target)}, gone=gone, feeds=feeds)


def test_reshape_to_zero_with_allowzero() -> None:
    check(
        SHAPES,
        [node("Reshape", ["first", "s"], ["a"], allowzero=1)],
        {"x": ["n", 3]},
        {"s": np.asarray([0, 3])},
        gone=False,
        feeds={"x": array(0, 3)},
    )


def test_reshape_to_its_own_shape() -> None:
    for shape in ([2, 3], ["n", "m"], [None, None]):
        nodes = [node("Shape", ["first"], ["s"]), node("Reshape", ["first", "s"], ["a"])]
        check(SHAPES, nodes, {"x": shape}, gone=True, feeds={"x": array(2, 3)})
    nodes = [node("Shape", ["first"], ["s"], start=1), node("Reshape", ["first", "s"], ["a"])]
    check(SHAPES, nodes, {"x": [1, 6]}, gone=False, feeds={"x": array(1, 6)})
    nodes = [node("Shape", ["z"], ["s"]), node("Reshape", ["first", "s"], ["a"])]
    check(SHAPES, nodes, {"x": ["a", "b"], "z": ["c", "d"]}, gone=False, feeds={"x": array(2, 3), "z": array(3, 2)})


def test_reshape_to_a_shape_put_together_from_its_own() -> None:
    nodes = [
        node("Shape", ["first"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "rest"], ["t"], axis=0),
        node("Reshape", ["first", "t"], ["a"]),
    ]
    weights = {"zero": np.asarray(0), "axes": np.asarray([0]), "rest": np.asarray([3])}
    check(SHAPES, nodes, {"x": ["n", 3]}, weights, gone=True, feeds={"x": array(4, 3)})


def test_one_unknown_dimension_is_not_another() -> None:
    nodes = [node("Shape", ["z"], ["s"]), node("Expand", ["first", "s"], ["a"])]
    for shape in ([None, 3], ["", 3]):
        check(SHAPES, nodes, {"x": [1, 3], "z": shape}, gone=False, feeds={"x": array(1, 3), "z": array(2, 3)})


def test_expand() -> None:
    for target, gone in (([1, 1], True), ([3], True), ([2, 3], True), ([1, 2, 3], False), ([4, 1, 1], False)):
        check(SHAPES, [node("Expand", ["first", "s"], ["a"])], {"x": [2, 3]}, {"s": np.asarray(target)}, gone=gone)
    check(SHAPES, [node("Expand", ["first", "s"], ["a"])], {"x": ["n", 3]}, {"s": np.asarray([2, 3])}, gone=False, feeds={"x": array(1, 3)})
    nodes = [node("Shape", ["first"], ["s"]), node("Expand", ["first", "s"], ["a"])]
    check(SHAPES, nodes, {"x": ["n", 3]}, gone=True, feeds={"x": array(2, 3)})


def test_transpose_flatten_squeeze_tile() -> None:
    check(SHAPES, [node("Transpose", ["first"], ["a"], perm=[0, 1, 2])], {"x": ["n", 3, 4]}, gone=True, feeds={"x": array(2, 3, 4)})
    check(SHAPES, [node("Transpose", ["first"], ["a"], perm=[0, 2, 1])], {"x": [2, 3, 4]}, gone=False)
    check(SHAPES, [node("Transpose", ["first"], ["a"])], {"x": [3]}, gone=True)
    check(SHAPES, [node("Transpose", ["first"], ["a"])], {"x": [3, 3]}, gone=False)
    check(SHAPES, [node("Flatten", ["first"], ["a"])], {"x": ["n", 3]}, gone=True, feeds={"x": array(2, 3)})
    check(SHAPES, [node("Flatten", ["first"], ["a"])], {"x": [2, 3, 4]}, gone=False)
    check(SHAPES, [node("Flatten", ["first"], ["a"], axis=0)], {"x": [2, 3]}, gone=False)
    check(SHAPES, [node("Squeeze", ["first"], ["a"])], {"x": [2, 3]}, gone=True)
    check(SHAPES, [node("Squeeze", ["first"], ["a"])], {"x": [1, 3]}, gone=False)
    check(SHAPES, [node("Tile", ["first", "r"], ["a"])], {"x": [2, 3]}, {"r": np.asarray([1, 1])}, gone=True)
    check(SHAPES, [node("Tile", ["first", "r"], ["a"])], {"x": [2, 3]}, {"r": np.asarray([1, 2])}, gone=False)


def test_shapes_that_a_function_declares_are_not_trusted() -> None:
    body = [node("Reshape", ["a", "s"], ["b"])]
    function = helper.make_function(
        "local",
        "F",
        ["a", "s"],
        ["b"],
        body,
        [helper.make_opsetid("", 17)],
        value_info=[helper.make_tensor_value_info("b", 1, [2, 3]), helper.make_tensor_value_info("a", 1, [2, 3])],
    )
    before = model(
        [node("F", ["x", "s"], ["y"], domain="local")],
        {"x": [2, 3]},
        {"y": [3, 2]},
        {"s": np.asarray([3, 2])},
        functions=[function],
        opsets={"local": 1},
        ir_version=10,
    )
    after, log = run_pass(before, SHAPES)
    assert log.applied == 0
    assert_same(before, after, {"x": array(2, 3)}, exact=True)


# --- selections -------------------------------------------------------------------------------------------------------

SELECTIONS = "eliminate-noop-selections"
END = np.iinfo(np.int64).max


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps", "shape", "gone"),
    [
        ([0], [END], [1], None, ["n", "m"], True),
        ([0], [END], [1], [1], ["n", "m"], True),
        ([0, 0], [2, 3], None, None, [2, 3], True),
        ([0], [2**31 - 1], [-1], None, ["n", "m"], True),
        ([0], [5], [-1], None, ["n", 3], True),
        ([0], [2], [-1], None, ["n", 3], False),
        ([1], [END], [0], None, [2, 3], False),
        ([0], [END], [0], [2], [2, 3], False),
        ([0], [2], [0], None, ["n", 3], False),
        ([0], [-1], [0], None, [2, 3], False),
    ],
)
def test_slices(starts, ends, axes, steps, shape, gone) -> None:
    weights = {"b": np.asarray(starts), "e": np.asarray(ends)}
    names = ["first", "b", "e", "", ""]
    for i, (name, data) in enumerate((("x_axes", axes), ("x_steps", steps)), start=3):
        if data is not None:
            weights[name], names[i] = np.asarray(data), name
    while not names[-1]:
        names.pop()
    check(
        SELECTIONS,
        [node("Slice", names, ["a"])],
        {"x": shape},
        weights,
        gone=gone,
        feeds={"x": array(*[d if isinstance(d, int) else 3 for d in shape])},
    )


def test_slices_whose_bounds_are_attributes() -> None:
    for end, gone in ((9, True), (1, False)):
        check(SELECTIONS, [node("Slice", ["first"], ["a"], starts=[0], ends=[end], axes=[0])], {"x": [2, 3]}, gone=gone, opset=9)


def test_bounds_that_a_caller_gives_stay() -> None:
    check(
        SELECTIONS,
        [node("Slice", ["first", "b", "e"], ["a"])],
        {"x": [2, 3]},
        {"b": np.asarray([0]), "e": np.asarray([END])},
        gone=False,
        overridable=["e"],
        feeds={"x": array(2, 3)},
    )


def test_pad_concat_split_gather() -> None:
    for mode in ("constant", "reflect"):
        check(SELECTIONS, [node("Pad", ["first", "p"], ["a"], mode=mode)], {"x": [2, 3]}, {"p": np.zeros(4, np.int64)}, gone=True)
    check(SELECTIONS, [node("Pad", ["first", "p"], ["a"])], {"x": [2, 3]}, {"p": np.asarray([0, 0, 0, 1])}, gone=False)
    check(SELECTIONS, [node("Pad", ["first"], ["a"], pads=[0, 0, 0, 0])], {"x": [2, 3]}, gone=True, opset=10)
    check(SELECTIONS, [node("Concat", ["first"], ["a"], axis=0)], {"x": [2, 3]}, gone=True)
    check(SELECTIONS, [node("Concat", ["first", "x"], ["a"], axis=0)], {"x": [2, 3]}, gone=False)
    check(SELECTIONS, [node("Split", ["first", "s"], ["a"])], {"x": [2, 3]}, {"s": np.asarray([2])}, gone=True)
    check(SELECTIONS, [node("Split", ["first"], ["a", "b"])], {"x": [2, 3]}, gone=False)
    check(
        SELECTIONS,
        [node("Gather", ["first", "i"], ["a"], axis=-1)],
        {"x": ["n", 3]},
        {"i": np.arange(3)},
        gone=True,
        feeds={"x": array(2, 3)},
    )
    check(SELECTIONS, [node("Gather", ["first", "i"], ["a"], axis=-1)], {"x": [2, 4]}, {"i": np.arange(3)}, gone=False)
    check(SELECTIONS, [node("Gather", ["first", "i"], ["a"])], {"x": ["n", 3]}, {"i": np.arange(2)}, gone=False, feeds={"x": array(2, 3)})
    check(SELECTIONS, [node("Gather", ["first", "i"], ["a"])], {"x": [2, 3]}, {"i": np.asarray([1, 0])}, gone=False)


# --- casts, resizes, reductions, dropout --------------------------------------------------------------------------------


def test_casts() -> None:
    check("eliminate-noop-cast", [node("Cast", ["first"], ["a"], to=TensorProto.FLOAT)], {"x": [2]}, gone=True)
    nodes = [node("Cast", ["first"], ["h"], to=TensorProto.FLOAT16), node("Cast", ["h"], ["a"], to=TensorProto.FLOAT)]
    check("eliminate-noop-cast", nodes, {"x": [2]}, gone=False)
    check("eliminate-noop-cast", [node("CastLike", ["first", "k"], ["a"])], {"x": [2]}, {"k": array(1)}, gone=True)
    nodes = [node("CastLike", ["first", "k"], ["h"]), node("CastLike", ["h", "x"], ["a"])]
    check("eliminate-noop-cast", nodes, {"x": [2]}, {"k": array(1, dtype="float16")}, gone=False)


def test_a_cast_in_a_function_stays_where_the_type_is_its_callers() -> None:
    body = [node("Cast", ["a"], ["c"], to=TensorProto.FLOAT), node("Cast", ["c"], ["b"], to=TensorProto.FLOAT)]
    function = helper.make_function(
        "local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)], value_info=[helper.make_tensor_value_info("a", 1, [2])]
    )
    before = model(
        [node("F", ["x"], ["y"], domain="local"), node("F", ["i"], ["z"], domain="local")],
        {"x": [2], "i": [2]},
        {"y": [2], "z": [2]},
        functions=[function],
        opsets={"local": 1},
        ir_version=10,
        types={"i": TensorProto.INT64},
    )
    after, _ = run_pass(before, "eliminate-noop-cast")
    assert [n.op_type for n in after.functions[0].node] == ["Cast"]
    assert_same(before, after, {"x": array(2), "i": np.int64([1, 2])}, exact=True)


RESIZE = "eliminate-noop-resize"


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_by_one(mode: str) -> None:
    ones, shape = np.ones(4, np.float32), {"x": [1, 2, 4, 4]}
    check(RESIZE, [node("Resize", ["first", "", "s"], ["a"], mode=mode)], shape, {"s": ones}, gone=True)
    check(RESIZE, [node("Resize", ["first", "", "", "s"], ["a"], mode=mode)], shape, {"s": np.asarray([1, 2, 4, 4])}, gone=True)
    check(RESIZE, [node("Resize", ["first", "", "s"], ["a"], mode=mode)], shape, {"s": np.float32([1, 1, 1, 1.1])}, gone=False)
    check(
        RESIZE,
        [node("Resize", ["first", "", "s"], ["a"], mode="linear", antialias=1)],
        shape,
        {"s": ones},
        gone=False,
        opset=18,
        reason="antialiasing",
    )


def test_resize_that_moves_what_it_does_not_scale() -> None:
    ones, shape = np.ones(4, np.float32), {"x": [1, 2, 4, 4]}
    roi = {"roi": np.float32([0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8]), "s": ones}
    check(
        RESIZE,
        [node("Resize", ["first", "roi", "s"], ["a"], mode="linear", coordinate_transformation_mode="tf_crop_and_resize")],
        shape,
        roi,
        gone=False,
        reason="region of interest",
    )
    check(
        RESIZE,
        [node("Resize", ["first", "roi", "s"], ["a"], mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn")],
        shape,
        roi,
        gone=False,
        reason="half an element",
        opset=12,
    )


def test_resize_to_its_own_dynamic_size() -> None:
    nodes = [node("Shape", ["first"], ["s"]), node("Resize", ["first", "", "", "s"], ["a"], mode="nearest")]
    check(RESIZE, nodes, {"x": [1, 2, "h", "w"]}, gone=True, feeds={"x": array(1, 2, 3, 5)})


def test_upsample() -> None:
    check(RESIZE, [node("Upsample", ["first", "s"], ["a"])], {"x": [1, 2, 4, 4]}, {"s": np.ones(4, np.float32)}, gone=True, opset=9)
    check(RESIZE, [node("Upsample", ["first"], ["a"], scales=[1.0, 1.0, 1.0, 1.0])], {"x": [1, 2, 4, 4]}, gone=True, opset=8)
    check(RESIZE, [node("Upsample", ["first"], ["a"], scales=[1.0, 1.0, 2.0, 1.0])], {"x": [1, 2, 4, 4]}, gone=False, opset=8)


def test_reductions_over_nothing() -> None:
    name = "eliminate-noop-reductions"
    for kind in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
        check(name, [node(kind, ["first"], ["a"], noop_with_empty_axes=1)], {"x": [2, 3]}, gone=True, opset=18)
        check(
            name,
            [node(kind, ["first", "e"], ["a"], noop_with_empty_axes=1)],
            {"x": [2, 3]},
            {"e": np.zeros(0, np.int64)},
            gone=True,
            opset=18,
        )
        check(name, [node(kind, ["first"], ["a"])], {"x": [2, 3]}, gone=False, opset=18)
    check(name, [node("ReduceL2", ["first"], ["a"], noop_with_empty_axes=1)], {"x": [2, 3]}, gone=False, opset=18)
    check(
        name,
        [node("ReduceSum", ["first", "e"], ["a"], noop_with_empty_axes=1)],
        {"x": [2, 3]},
        {"e": np.asarray([1])},
        gone=False,
        opset=18,
    )


DROPOUT = "eliminate-dropout"


def test_dropout_at_inference() -> None:
    check(DROPOUT, [node("Dropout", ["first"], ["a"])], {"x": [9]}, gone=True)
    check(DROPOUT, [node("Dropout", ["first"], ["a", "unused"], ratio=0.9)], {"x": [9]}, gone=True, opset=10)
    weights = {"ratio": np.float32(0.5), "train": np.asarray(False)}
    check(DROPOUT, [node("Dropout", ["first", "ratio", "train"], ["a"])], {"x": [9]}, weights, gone=True)
    check(DROPOUT, [node("Dropout", ["first", "ratio", ""], ["a"])], {"x": [9]}, weights, gone=True)


def test_dropout_in_training_and_with_its_mask_stays() -> None:
    weights = {"ratio": np.float32(0.0), "train": np.asarray(True)}
    check(DROPOUT, [node("Dropout", ["first", "ratio", "train"], ["a"])], {"x": [9]}, weights, gone=False, reason="training mode")
    weights["train"] = np.asarray(False)
    check(
        DROPOUT,
        [node("Dropout", ["first", "ratio", "train"], ["a"])],
        {"x": [9]},
        weights,
        gone=False,
        overridable=["train"],
        reason="a caller may override",
        feeds={"x": array(9)},
    )
    before = model([node("Dropout", ["x"], ["y", "mask"])], {"x": [4]}, {"y": [4], "mask": [4]}, types={"mask": TensorProto.BOOL}, opset=13)
    after, log = run_pass(before, DROPOUT)
    assert ops(after) == {"Dropout": 1} and "is used" in reasons(log)[0]
    assert_same(before, after, {"x": array(4)}, exact=True)
