"""The normalization of an input in its many spellings, before convolutions that pad and that do not."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "fold-input-normalization"
X = (2, 3, 8, 8)
MEAN, STD = np.float32([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1), np.float32([0.2, 0.3, 0.25]).reshape(1, 3, 1, 1)
SPELLINGS = {
    "sub-div": [("Sub", MEAN), ("Div", STD)],
    "mul-add": [("Mul", 1 / STD), ("Add", -MEAN / STD)],
    "div-sub-div": [("Div", np.float32(255)), ("Sub", MEAN[0]), ("Div", STD[0])],
    "scalar": [("Sub", np.float32(127.5)), ("Mul", np.float32([1 / 127.5]))],
    "turned": [("turned Sub", MEAN), ("Mul", 1 / STD)],
    "add-add": [("Add", MEAN), ("Sub", STD)],
}


def normalized(steps, *, pads=0, bias=True, cast=False, nhwc=False, channels=3, x=X, **kwargs):
    """Input, [Cast], steps, [Transpose], Conv."""
    nodes, weights, value = [], {"w": array(4, channels, 3, 3)}, "x"
    if bias:
        weights["b"] = array(4, seed=1)
    if cast:
        nodes.append(node("Cast", ["x"], ["f"], to=TensorProto.FLOAT))
        value = "f"
    for i, (kind, data) in enumerate(steps):
        weights[f"c{i}"] = np.asarray(np.moveaxis(data, -3, -1) if nhwc and data.ndim > 2 else data, "f")
        pair = [value, f"c{i}"]
        nodes.append(node(kind.split()[-1], pair[::-1] if kind.startswith("turned") else pair, [f"s{i}"]))
        value = f"s{i}"
    if nhwc:
        nodes.append(node("Transpose", [value], ["t"], perm=[0, 3, 1, 2]))
        value = "t"
        x = (x[0], *x[2:], x[1])
    nodes.append(node("Conv", [value, "w", *(["b"] if bias else [])], ["y"], pads=[pads] * 4))
    return model(nodes, {"x": x}, {"y": [None] * 4}, weights, types={"x": TensorProto.UINT8} if cast else {}, **kwargs)


def feed(cast=False, nhwc=False):
    data = array(*X, low=0.0)
    data = np.moveaxis(data, 1, -1) if nhwc else data
    return {"x": (data * 255).astype(np.uint8) if cast else data}


def folded(before, expected, feeds) -> onnx.ModelProto:
    after, log = run_pass(before, NAME)
    assert ops(after) == expected, (ops(after), reasons(log))
    assert_same(before, after, feeds)
    return after


def refused(before, reason: str, **options) -> None:
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


def unmatched(before) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before) and not reasons(log), reasons(log)


@pytest.mark.parametrize("steps", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_no_padding(steps, cast, bias) -> None:
    folded(normalized(steps, cast=cast, bias=bias), {"Conv": 1} | ({"Cast": 1} if cast else {}), feed(cast))


@pytest.mark.parametrize("steps", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("nhwc", [False, True])
def test_padding_leaves_one_add(steps, cast, nhwc) -> None:
    expected = {"Add": 1, "Conv": 1} | ({"Cast": 1} if cast else {}) | ({"Transpose": 1} if nhwc else {})
    folded(normalized(steps, pads=1, cast=cast, nhwc=nhwc), expected, feed(cast, nhwc))


def test_channels_last_without_padding() -> None:
    folded(normalized(SPELLINGS["sub-div"], cast=True, nhwc=True), {"Cast": 1, "Transpose": 1, "Conv": 1}, feed(True, True))


def test_a_scale_alone_folds_before_padding() -> None:
    folded(normalized([("Div", np.float32(255))], pads=1, cast=True), {"Cast": 1, "Conv": 1}, feed(True))


def test_one_value_for_all_channels_stays_a_scalar() -> None:
    after = folded(normalized(SPELLINGS["scalar"], pads=1, cast=True), {"Cast": 1, "Add": 1, "Conv": 1}, feed(True))
    add = next(n for n in after.graph.node if n.op_type == "Add")
    assert list(next(t for t in after.graph.initializer if t.name == add.input[1]).dims) == []


def test_a_shift_before_padding() -> None:
    refused(normalized([("Sub", MEAN)], pads=1), "the convolution pads with zeros")


def test_the_add_that_was_left_is_left_again() -> None:
    once, _ = run_pass(normalized(SPELLINGS["sub-div"], pads=1), NAME)
    refused(once, "the convolution pads with zeros")


def test_zero() -> None:
    refused(normalized([("Mul", np.float32([1, 0, 1]).reshape(3, 1, 1)), ("Add", MEAN)], pads=1), "multiplies by zero")
    refused(normalized([("Div", np.float32([1, 0, 1]).reshape(3, 1, 1))]), "divides by zero")


def test_a_constant_that_is_no_vector_of_channels() -> None:
    refused(normalized([("Sub", array(1, 3, 8, 8))]), "not one value a channel")
    refused(normalized([("Sub", array(1, 1, 1, 8))]), "not one value a channel")


def test_a_constant_that_widens() -> None:
    refused(normalized([("Sub", MEAN), ("Div", STD)], x=(2, 1, 8, 8)), "may widen")
    refused(normalized([("Sub", MEAN), ("Div", STD)], x=(2, "c", 8, 8)), "may widen")


def test_used_elsewhere() -> None:
    before = normalized(SPELLINGS["sub-div"])
    before.graph.node.append(node("Neg", ["s0"], ["z"]))
    before.graph.output.append(helper.make_tensor_value_info("z", 1, [None] * 4))
    refused(before, "has 2 consumers")
    before = normalized(SPELLINGS["sub-div"])
    before.graph.output.append(helper.make_tensor_value_info("s1", 1, [None] * 4))
    refused(before, "also a graph output")


def test_overridable_constants() -> None:
    refused(normalized(SPELLINGS["sub-div"], overridable=["w"]), "a caller may override it")
    unmatched(normalized(SPELLINGS["sub-div"], overridable=["c1"]))


def test_only_at_the_input() -> None:
    before = normalized(SPELLINGS["sub-div"])
    before.graph.node.insert(0, node("Relu", ["x"], ["r"]))
    before.graph.node[1].input[0] = "r"
    unmatched(before)


def test_a_quotient_of_a_constant() -> None:
    unmatched(normalized([("turned Div", MEAN)]))


def test_shared_weight() -> None:
    before = normalized(SPELLINGS["sub-div"], pads=1)
    before.graph.node.append(node("Conv", ["x", "w"], ["z"]))
    before.graph.output.append(helper.make_tensor_value_info("z", 1, [None] * 4))
    refused(before, "other consumers", max_growth_bytes=10)
    folded(before, {"Add": 1, "Conv": 2}, feed())


def test_scale_too_small() -> None:
    refused(normalized([("Mul", np.float32(1e-38)), ("Mul", np.float32(1e-30))]), "")


def _function(pads, steps):
    weights = steps | {"w": array(4, 3, 3, 3)}
    constants = [node("Constant", [], [k], value=numpy_helper.from_array(np.asarray(v, "f"))) for k, v in weights.items()]
    body = [*constants, node("Sub", ["x", "m"], ["s"]), node("Div", ["s", "d"], ["n"]), node("Conv", ["n", "w"], ["y"], pads=[pads] * 4)]
    function = helper.make_function("local", "start", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("start", ["x"], ["y"], domain="local")
    return model([call], {"x": X}, {"y": [None] * 4}, functions=[function], opsets={"local": 1})


@pytest.mark.parametrize("pads", [0, 1])
def test_in_a_function(pads: int) -> None:
    before = _function(pads, {"m": 0.5, "d": 0.25})
    after, log = run_pass(before, NAME)
    assert log.applied == 1, reasons(log)
    assert_same(before, after, feed())
    _, log = run_pass(_function(pads, {"m": MEAN, "d": STD}), NAME)
    assert log.applied == 0 and "may widen" in reasons(log)[0]


def test_in_a_subgraph() -> None:
    inner = helper.make_graph(
        [node("Sub", ["x", "m"], ["s"]), node("Div", ["s", "d"], ["n"]), node("Conv", ["n", "w"], ["t"])],
        "then", [], [helper.make_tensor_value_info("t", 1, None)],
    )
    other = helper.make_graph([node("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)])
    before = model(
        [node("If", ["p"], ["y"], then_branch=inner, else_branch=other)], {"x": X, "p": []}, {"y": [None] * 4},
        {"m": MEAN, "d": STD, "w": array(4, 3, 3, 3)}, types={"p": 9},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 1, reasons(log)
    assert_same(before, after, feed() | {"p": np.array(True)})
