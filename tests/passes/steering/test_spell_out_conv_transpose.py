"""ConvTranspose of stride 2 as a sub-pixel convolution."""

import numpy as np
import pytest

from tests.passes.fusion.expressions import Expression, fused, refused, unmatched
from tests.support import array, assert_same

NAME = "spell-out-conv-transpose"
X = (2, 3, 5, 4)
GEOMETRY = {4: {"strides": [2, 2], "pads": [1, 1, 1, 1]}, 2: {"strides": [2, 2]}}


def up(size: int = 4, *, bias: bool = True, activation: str = "", opset: int = 17, dtype: str = "float32", x=X, group=1, **attributes):
    e = Expression(dtype, opset)
    e.initializers["w"] = array(3, 6 // group, size, size).astype(dtype)
    inputs = ["x", "w"]
    if bias:
        e.initializers["b"] = array(6, seed=3).astype(dtype)
        inputs.append("b")
    given = {**GEOMETRY[size], "group": group, **attributes}
    made = e.ConvTranspose(*inputs, output="t" if activation else "y", **given)
    if activation:
        getattr(e, activation)(made, output="y")
    return e, e.model({"x": x}, ["y"])


@pytest.mark.parametrize("x", [X, ("n", 3, "h", "w")])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("size", "more"), [(4, {"Slice": 1}), (2, {})])
@pytest.mark.parametrize("activation", ["", "Relu", "LeakyRelu"])
def test_spelled_out(x, bias, size, more, activation) -> None:
    _, before = up(size, bias=bias, activation=activation, x=x)
    after = fused(NAME, before, {"Conv": 1, "DepthToSpace": 1, **more} | ({activation: 1} if activation else {}))
    assert_same(before, after, {"x": array(*X)})
    types = [n.op_type for n in after.graph.node]
    assert types[:2] == ["Conv", activation or "DepthToSpace"]


def test_what_others_need_before_the_activation_stays() -> None:
    e = Expression()
    e.initializers["w"] = array(3, 6, 4, 4)
    made = e.ConvTranspose("x", "w", output="t", **GEOMETRY[4])
    e.Relu(made, output="y")
    before = e.model({"x": X}, ["t", "y"])
    after = fused(NAME, before, {"Conv": 1, "DepthToSpace": 1, "Slice": 1, "Relu": 1})
    assert [n.op_type for n in after.graph.node][-1] == "Relu"
    assert_same(before, after, {"x": array(*X)})


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1, 1]},
        {"pads": [0, 0, 0, 0]},
        {"pads": [1, 1, 1, 0]},
        {"dilations": [2, 2]},
        {"output_padding": [1, 1]},
        {"output_shape": [10, 8]},
        {"auto_pad": "SAME_UPPER", "pads": None},
    ],
)
def test_other_geometries_are_none(attributes) -> None:
    given = {k: v for k, v in attributes.items() if v is not None}
    e = Expression()
    e.initializers["w"] = array(3, 6, 4, 4)
    base = {k: v for k, v in GEOMETRY[4].items() if attributes.get(k, v) is not None}
    e.ConvTranspose("x", "w", output="y", **{**base, **given})
    unmatched(NAME, e.model({"x": X}, ["y"]))


def test_refusals() -> None:
    refused(NAME, up(group=3)[1], "grouped")
    refused(NAME, up(opset=10)[1], "opset 11")
    refused(NAME, up(dtype="float16")[1], "float32")
    e = Expression()
    e.initializers["w"] = array(3, 3, 2, 2)
    middle = e.ConvTranspose("x", "w", **GEOMETRY[2])
    e.ConvTranspose(middle, "w", output="y", **GEOMETRY[2])
    refused(NAME, e.model({"x": X}, ["y"]), "weight")
    e = Expression()
    e.initializers["w"] = array(3, 6, 2, 2)
    e.ConvTranspose("x", "w", output="y", **GEOMETRY[2])
    refused(NAME, e.model({"x": X}, ["y"], overridable=["w"]), "may override")


def test_weights_keep_their_size() -> None:
    _, before = up(4, bias=False)
    after = fused(NAME, before, {"Conv": 1, "DepthToSpace": 1, "Slice": 1})
    (weight,) = [t for t in after.graph.initializer if len(t.dims) == 4]
    assert np.prod(weight.dims) == 3 * 6 * 16
