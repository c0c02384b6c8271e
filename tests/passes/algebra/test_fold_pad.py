"""A Pad before a convolution or a pooling: where it folds, and where it must not, or would be slower."""

import numpy as np
import pytest

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "fold-pad"
X = (2, 3, 7, 8)
SPATIAL = [0, 0, 1, 2, 0, 0, 3, 0]
LOWEST = np.float32(-np.inf)


def padded(
    op="Conv", amounts=SPATIAL, value=None, axes=None, *, x=X, w=(4, 3, 3, 3), opset=18, mode=None, before=None, extra=(), more=(),
    overridable=(), **attributes,
):  # fmt: skip
    """x, an operator in front if there is one, a Pad, and `op` with its attributes."""
    weights = {"p": np.asarray(amounts), **({"w": array(*w)} if op == "Conv" else {})}
    inputs = ["s" if before else "x", "p"]
    if value is not None or axes is not None:
        inputs.append("" if value is None else "v")
    if value is not None:
        weights["v"] = np.asarray(value)
    if axes is not None:
        inputs.append("a")
        weights["a"] = np.asarray(axes)
    if op != "Conv":
        attributes = {"kernel_shape": [4, 4]} | attributes
    nodes = [
        *([node(before, ["x"], ["s"])] if before else []),
        node("Pad", inputs, ["padded"], **({"mode": mode} if mode else {})),
        node(op, ["padded", *(["w"] if op == "Conv" else [])], ["y"], **attributes), *extra,
    ]  # fmt: skip
    return model(nodes, {"x": x}, dict.fromkeys(["y", *more], [None] * len(x)), weights, opset=opset, overridable=overridable)


def folds(before, feed=X) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after)["Pad"] == 0, reasons(log)
    assert sum(ops(after).values()) == sum(ops(before).values()) - 1
    assert_same(before, after, {"x": array(*feed)})


def refused(before, reason: str) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


OWN = [{}, {"pads": [1, 0, 2, 1]}, {"auto_pad": "VALID", "strides": [2, 1]}, {"dilations": [2, 1]}]


@pytest.mark.parametrize("value", [None, np.float32(0), np.float32(-0.0)], ids=str)
@pytest.mark.parametrize("attributes", OWN, ids=str)
def test_into_a_convolution(value, attributes) -> None:
    folds(padded(value=value, **attributes))


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3]])
def test_axes(axes) -> None:
    folds(padded(amounts=[1, 2, 3, 0][: 2 * len(axes)], axes=axes))


def test_other_ranks_groups_and_symbolic_sizes() -> None:
    folds(padded(amounts=[0, 0, 2, 0, 0, 1], x=(2, 3, 9), w=(4, 3, 3)), (2, 3, 9))
    folds(padded(w=(6, 1, 5, 5), group=3))
    folds(padded(x=("n", 3, "h", "w")))
    folds(padded(x=("n", 32, "h", "w"), w=(4, 32, 3, 3)), (1, 32, 5, 6))
    folds(padded(amounts=[0, 0, 254, 0, 0, 0, 254, 0], x=(1, 1, 1024, 1), w=(16, 1, 512, 1), strides=[4, 1]), (1, 1, 1024, 1))


def test_attributes_of_old_opsets() -> None:
    nodes = [node("Pad", ["x"], ["p"], pads=SPATIAL), node("Conv", ["p", "w"], ["y"])]
    folds(model(nodes, {"x": X}, ["y"], {"w": array(4, 3, 3, 3)}, opset=10))
    nodes = [node("Pad", ["x"], ["p"], pads=SPATIAL, value=1.0), node("Conv", ["p", "w"], ["y"])]
    refused(model(nodes, {"x": X}, ["y"], {"w": array(4, 3, 3, 3)}, opset=10), "pads with 1")


@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 2]}, {"pads": [0, 1, 0, 1], "count_include_pad": 1}], ids=str)
def test_into_an_average(attributes) -> None:
    folds(padded("AveragePool", **attributes))


@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 2], "pads": [1, 1, 0, 1]}], ids=str)
def test_into_a_maximum(attributes) -> None:
    folds(padded("MaxPool", value=LOWEST, **attributes))
    folds(padded("MaxPool", before="Relu", **attributes))
    folds(padded("MaxPool", before="Sigmoid", value=np.float32(-1), **attributes))


# --- what must not fold -------------------------------------------------------------------------------------------


def test_what_the_operator_would_not_pad_alike() -> None:
    refused(padded(value=np.float32(1e-30)), "pads with 1e-30")
    refused(padded(mode="reflect"), "not pad with a constant")
    refused(padded("MaxPool"), "largest of a window")
    refused(padded("MaxPool", value=np.float32(0.5), before="Relu"), "largest of a window")
    refused(padded("AveragePool", auto_pad="SAME_UPPER"), "depends on the size")
    refused(padded("AveragePool", pads=[1, 1, 1, 1]), "leaves its own padding out")
    refused(padded("AveragePool", ceil_mode=1), "rounds the size")
    refused(padded("MaxPool", value=LOWEST, dilations=[2, 2], kernel_shape=[3, 3]), "dilated")
    refused(padded("MaxPool", value=LOWEST, kernel_shape=[2, 2]), "as large as the window")


def test_where_it_pads() -> None:
    refused(padded(amounts=[1, 0, 0, 0, 0, 0, 0, 0]), "batch or the channels")
    refused(padded(amounts=[0, 0, 0, 0, 0, 1, 0, 0], w=(4, 4, 3, 3)), "batch or the channels")
    refused(padded(amounts=[0, 0, -1, 1, 0, 0, 1, 1]), "cuts off")
    refused(padded(overridable=["p"]), "is not known")
    refused(padded(value=np.float32(0), overridable=["v"]), "value that it pads with")


def test_places_of_the_maximum() -> None:
    nodes = [node("Pad", ["x", "p", "v"], ["q"]), node("MaxPool", ["q"], ["y", "i"], kernel_shape=[4, 4])]
    weights = {"p": np.asarray(SPATIAL), "v": LOWEST}
    refused(model(nodes, {"x": X}, {"y": [None] * 4, "i": [None] * 4}, weights, types={"i": 7}), "'i' is used")


def test_consumers() -> None:
    refused(padded(extra=[node("Relu", ["padded"], ["z"])], more=["z"]), "consumers")
    refused(padded(more=["padded"]), "also a graph output")


@pytest.mark.parametrize(
    ("x", "w", "pads", "attributes"),
    [
        ((1, 16, 56, 56), (16, 16, 7, 7), [0, 0, 3, 3, 0, 0, 3, 3], {}),
        ((1, 16, 1, 64), (16, 16, 1, 31), [0, 0, 0, 15, 0, 0, 0, 15], {}),
        ((1, 16, 28, 28), (16, 1, 13, 13), [0, 0, 6, 6, 0, 0, 6, 6], {"group": 16}),
    ],
)
def test_large_kernels_are_slower(x, w, pads, attributes) -> None:
    refused(padded(x=x, w=w, amounts=pads, **attributes), "taps is slower")


@pytest.mark.parametrize("width", [1, "w"])
def test_columns_are_slower(width) -> None:
    refused(padded(x=(1, 16, 64, width), w=(16, 16, 3, 1), amounts=[0, 0, 1, 0, 0, 0, 1, 0]), "padded column")
