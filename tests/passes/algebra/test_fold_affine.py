"""Constant scales and shifts beside a linear operator: where they fold, and where they must not."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "fold-affine"
IMAGE = (2, 3, 6, 6)
CHANNEL = array(4, seed=5, low=0.5).reshape(1, 4, 1, 1)


def conv(extra, weights, *, output="y", bias=True, x=IMAGE, attributes=None, op="Conv", w=(4, 3, 3, 3)):
    """A Conv from x (or s) to c (or y) with nodes around it."""
    source = "s" if any("s" in n.output for n in extra) else "x"
    target = output if source == "s" else "c"
    made = node(op, [source, "w", *(["k"] if bias else [])], [target], **(attributes or {}))
    before, after = [n for n in extra if "s" in n.output or n.output[0].startswith("p")], [n for n in extra if "c" in n.input]
    rest = [n for n in extra if n not in before and n not in after]
    return model([*before, made, *after, *rest], {"x": x}, ["y"], {"w": array(*w), **({"k": array(4, seed=2)} if bias else {}), **weights})


def refused(before, reason: str, **options) -> None:
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


# --- behind the operator ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "constant", [CHANNEL, CHANNEL[0], np.float32(0.3), np.float32([0.3]), np.full((1, 1, 1, 1), 2, np.float32)], ids=str
)
@pytest.mark.parametrize(
    ("op", "order"), [("Mul", "cm"), ("Mul", "mc"), ("Add", "cm"), ("Add", "mc"), ("Sub", "cm"), ("Sub", "mc"), ("Div", "cm")]
)
@pytest.mark.parametrize("bias", [True, False])
def test_behind_a_convolution(constant, op: str, order: str, bias: bool) -> None:
    before = conv([node(op, list(order), ["y"])], {"m": constant}, bias=bias, attributes={"pads": [1, 1, 1, 1]})
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert_same(before, after, {"x": array(*IMAGE)})


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_behind_a_transposed_convolution(op: str, group: int) -> None:
    before = conv(
        [node(op, ["c", "m"], ["y"])],
        {"m": CHANNEL},
        op="ConvTranspose",
        w=(6, 4 // group, 3, 3),
        x=(2, 6, 5, 5),
        attributes={"group": group, "strides": [2, 2]},
    )
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"ConvTranspose": 1}
    assert_same(before, after, {"x": array(2, 6, 5, 5)})


@pytest.mark.parametrize("op", ["Mul", "Add", "Div", "Sub"])
def test_behind_a_gemm(op: str) -> None:
    attributes = {"alpha": 0.5, "beta": 3.0, "transB": 1}
    before = conv([node(op, ["c", "m"], ["y"])], {"m": array(4, low=0.5)}, op="Gemm", w=(4, 5), x=(3, 5), attributes=attributes)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Gemm": 1}
    assert_same(before, after, {"x": array(3, 5)})


@pytest.mark.parametrize("dims", [(), (4,), (1, 4), (1, 1, 4)])
def test_chain_behind_a_matmul(dims) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Mul", ["a", "m"], ["b"]), node("Add", ["b", "k"], ["c"]),
        node("Div", ["c", "m"], ["d"]), node("Add", ["d", "k"], ["y"]),
    ]  # fmt: skip
    before = model(nodes, {"x": ["n", 7, 5]}, ["y"], {"w": array(5, 4), "m": array(*dims, low=0.5), "k": array(4, seed=3)})
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"MatMul": 1, "Add": 1}
    assert_same(before, after, {"x": array(2, 7, 5)})


def test_a_matmul_and_its_bias_are_no_match() -> None:
    before = model(
        [node("MatMul", ["x", "w"], ["c"]), node("Add", ["c", "k"], ["y"])], {"x": [2, 5]}, ["y"], {"w": array(5, 4), "k": array(4)}
    )
    after, log = run_pass(before, NAME)
    assert ops(after) == {"MatMul": 1, "Add": 1}
    assert log.refusals == []


def test_a_residual_is_no_match() -> None:
    before = conv([node("Add", ["c", "x"], ["y"])], {}, w=(4, 4, 3, 3), x=(2, 4, 6, 6), attributes={"pads": [1] * 4})
    _, log = run_pass(before, NAME)
    assert log.refusals == []


@pytest.mark.parametrize(
    ("constant", "reason"),
    [
        (array(1, 4, 4, 4), "not one value a channel"),
        (array(4), "not one value a channel"),
        (array(2, 4, 1, 1), "not one value a channel"),
        (array(1, 1, 4, 1, 1), "more dimensions"),
    ],
)
def test_constants_that_do_not_hold_one_value_a_channel(constant, reason: str) -> None:
    refused(conv([node("Mul", ["c", "m"], ["y"])], {"m": constant}), reason)


def test_a_constant_that_widens_the_output() -> None:
    before = conv([node("Mul", ["c", "m"], ["y"])], {"m": CHANNEL}, w=(1, 3, 3, 3), bias=False)
    refused(before, "not one value a channel")
    before = model(
        [node("MatMul", ["x", "w"], ["c"]), node("Mul", ["c", "m"], ["y"])], {"x": [5]}, ["y"], {"w": array(5, 4), "m": array(1, 4)}
    )
    refused(before, "more dimensions")


def test_division_by_zero_and_overflow() -> None:
    refused(conv([node("Div", ["c", "m"], ["y"])], {"m": np.float32(0)}), "divides by zero")
    refused(conv([node("Mul", ["c", "m"], ["y"])], {"m": np.float32(np.inf)}), "not be finite")
    refused(conv([node("Mul", ["c", "m"], ["y"])], {"m": np.float32(3e38)}), "not be finite")


def test_further_consumers_and_graph_outputs() -> None:
    extra = [node("Mul", ["c", "m"], ["a"]), node("Add", ["a", "c"], ["y"])]
    refused(conv(extra, {"m": CHANNEL}), "2 consumers")
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "m"], ["y"])]
    refused(model(nodes, {"x": IMAGE}, ["y", "c"], {"w": array(4, 3, 3, 3), "m": CHANNEL}), "also a graph output")


def test_overridable_initializers() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "m"], ["y"])]
    weights = {"w": array(4, 3, 3, 3), "m": CHANNEL}
    refused(model(nodes, {"x": IMAGE}, ["y"], weights, overridable=["w"]), "a caller may override it")
    before = model(nodes, {"x": IMAGE}, ["y"], weights, overridable=["m"])
    after, _ = run_pass(before, NAME)
    assert ops(after) == ops(before)


def test_shared_weight() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "m"], ["y"]), node("Conv", ["x", "w"], ["z"])]
    before = model(nodes, {"x": IMAGE}, ["y", "z"], {"w": array(4, 3, 3, 3), "m": CHANNEL})
    refused(before, "has other consumers", max_growth_bytes=0)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 2}
    assert_same(before, after, {"x": array(*IMAGE)})


# --- before the operator ------------------------------------------------------------------------------------------

INPUT = array(3, seed=5, low=0.5).reshape(1, 3, 1, 1)


@pytest.mark.parametrize("constant", [INPUT, INPUT[0], np.float32(0.3)], ids=["1C11", "C11", "scalar"])
@pytest.mark.parametrize(("op", "order"), [("Mul", "xm"), ("Mul", "mx"), ("Div", "xm")])
@pytest.mark.parametrize("group", [1, 3])
def test_scale_before_a_padding_convolution(constant, op: str, order: str, group: int) -> None:
    before = conv(
        [node(op, list(order), ["s"])],
        {"m": constant, "k": array(6)},
        w=(6, 3 // group, 3, 3),
        bias=False,
        attributes={"pads": [1] * 4, "group": group},
    )
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert_same(before, after, {"x": array(*IMAGE)})


@pytest.mark.parametrize(("op", "order"), [("Add", "xm"), ("Add", "mx"), ("Sub", "xm"), ("Sub", "mx")])
@pytest.mark.parametrize("attributes", [{}, {"auto_pad": "VALID"}, {"pads": [0] * 4, "group": 3}])
@pytest.mark.parametrize("bias", [True, False])
def test_shift_before_a_convolution_without_padding(op: str, order: str, attributes, bias: bool) -> None:
    group = attributes.get("group", 1)
    weights = {"m": INPUT, **({"k": array(6)} if bias else {})}
    before = model(
        [node(op, list(order), ["s"]), node("Conv", ["s", "w", *(["k"] if bias else [])], ["y"], **attributes)],
        {"x": IMAGE},
        ["y"],
        weights | {"w": array(6, 3 // group, 3, 3)},
    )
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert_same(before, after, {"x": array(*IMAGE)})


def test_standardized_input() -> None:
    """(x - mean) / std: all of it without padding; with padding the division only, as the border is zero after it."""
    nodes = [node("Sub", ["x", "mean"], ["a"]), node("Div", ["a", "std"], ["s"])]
    for pads, left in (([0] * 4, {"Conv": 1}), ([1] * 4, {"Sub": 1, "Conv": 1})):
        before = model(
            [*nodes, node("Conv", ["s", "w"], ["y"], pads=pads)],
            {"x": ["n", 3, 6, 6]},
            ["y"],
            {"w": array(4, 3, 3, 3), "mean": INPUT, "std": INPUT * 2},
        )
        after, _ = run_pass(before, NAME)
        assert ops(after) == left
        assert_same(before, after, {"x": array(*IMAGE)})


@pytest.mark.parametrize("pads", [[1] * 4, [0, 0, 0, 1]])
def test_shift_before_padding_stays(pads) -> None:
    refused(conv([node("Add", ["x", "m"], ["s"])], {"m": INPUT}, attributes={"pads": pads}), "the convolution pads")
    refused(conv([node("Add", ["x", "m"], ["s"])], {"m": INPUT}, attributes={"auto_pad": "SAME_UPPER"}), "the convolution pads")


def test_before_a_transposed_convolution() -> None:
    before = conv([node("Mul", ["x", "m"], ["s"])], {"m": INPUT}, op="ConvTranspose", w=(3, 4, 3, 3))
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"ConvTranspose": 1}
    assert_same(before, after, {"x": array(*IMAGE)})
    refused(conv([node("Add", ["x", "m"], ["s"])], {"m": INPUT}, op="ConvTranspose", w=(3, 4, 3, 3)), "at the border")


@pytest.mark.parametrize("trans", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_before_a_gemm(trans, op: str) -> None:
    a, b = trans
    shape, constant = ((5, 3), (5, 1)) if a else ((3, 5), (5,))
    attributes = {"transA": a, "transB": b, "alpha": 0.5, "beta": 2.0}
    before = conv(
        [node(op, ["x", "m"], ["s"])], {"m": array(*constant)}, op="Gemm", w=(4, 5) if b else (5, 4), x=shape, attributes=attributes
    )
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Gemm": 1}
    assert_same(before, after, {"x": array(*shape)})


def test_before_a_matmul() -> None:
    nodes = [
        node("Mul", ["x", "m"], ["a"]),
        node("Add", ["a", "n"], ["b"]),
        node("MatMul", ["b", "w"], ["c"]),
        node("Add", ["c", "k"], ["y"]),
    ]
    before = model(nodes, {"x": ["b", 7, 5]}, ["y"], {"w": array(5, 4), "m": array(5), "n": array(1, 5), "k": array(4)})
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"MatMul": 1, "Add": 1}
    assert_same(before, after, {"x": array(2, 7, 5)})


def test_a_shift_before_a_matmul_without_bias_stays() -> None:
    before = model(
        [node("Add", ["x", "m"], ["s"]), node("MatMul", ["s", "w"], ["y"])], {"x": [2, 5]}, ["y"], {"w": array(5, 4), "m": array(5)}
    )
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before)
    assert log.refusals == []


NORM = {p: array(3, seed=i, low=0.5) for i, p in enumerate("tbmv")}


def test_norm_before_a_convolution() -> None:
    norm = node("BatchNormalization", ["x", *"tbmv"], ["s"])
    before = conv([norm], NORM)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert_same(before, after, {"x": array(*IMAGE)})
    refused(conv([norm], NORM, attributes={"pads": [1] * 4}), "the convolution pads")
    training = node("BatchNormalization", ["x", *"tbmv"], ["s", "p1", "p2"], training_mode=1)
    refused(conv([training], NORM), "training mode")


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_norm_before_a_matrix(op: str) -> None:
    norm = node("BatchNormalization", ["x", *"tbmv"], ["s"])
    product = (
        [node("Gemm", ["s", "w", "k"], ["y"])] if op == "Gemm" else [node("MatMul", ["s", "w"], ["c"]), node("Add", ["c", "k"], ["y"])]
    )
    before = model([norm, *product], {"x": ["n", 3]}, ["y"], {"w": array(3, 4), "k": array(4), **NORM})
    after, _ = run_pass(before, NAME)
    assert "BatchNormalization" not in ops(after)
    assert_same(before, after, {"x": array(5, 3)})


def test_norm_before_a_matmul_over_another_axis() -> None:
    nodes = [node("BatchNormalization", ["x", *"tbmv"], ["s"]), node("MatMul", ["s", "w"], ["c"]), node("Add", ["c", "k"], ["y"])]
    before = model(nodes, {"x": [2, 3, 3]}, ["y"], {"w": array(3, 4), "k": array(4), **NORM})
    refused(before, "not on the axis")


@pytest.mark.parametrize("x", [(2, 1, 6, 6), ("n", "c", 6, 6)])
def test_a_constant_that_may_widen_the_input(x) -> None:
    before = model(
        [node("Mul", ["x", "m"], ["s"]), node("Conv", ["s", "w"], ["y"])], {"x": x}, {"y": [None] * 4}, {"m": INPUT, "w": array(4, 3, 3, 3)}
    )
    refused(before, "may widen the input")


def test_a_constant_that_adds_a_dimension_to_the_input() -> None:
    before = model(
        [node("Mul", ["x", "m"], ["s"]), node("Conv", ["s", "w"], ["y"])], {"x": (3, 6, 6)}, ["y"], {"m": INPUT, "w": array(4, 3, 3, 3)}
    )
    refused(before, "adds dimensions")


def test_a_constant_before_a_gemm_that_scales_rows() -> None:
    refused(conv([node("Mul", ["x", "m"], ["s"])], {"m": array(5, 1)}, op="Gemm", w=(5, 4), x=(5, 5)), "not one value a channel")


def test_the_end_of_a_gelu_or_layer_norm_stays() -> None:
    gelu = [
        node("Div", ["x", "root"], ["a"]), node("Erf", ["a"], ["b"]), node("Add", ["b", "one"], ["c"]), node("Mul", ["x", "c"], ["d"]),
        node("Mul", ["d", "half"], ["e"]), node("MatMul", ["e", "w"], ["y"]),
    ]  # fmt: skip
    weights = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5), "w": array(5, 4)}
    refused(model(gelu, {"x": [2, 5]}, ["y"], weights), "the runtime fuses")
    norm = [
        node("ReduceMean", ["x"], ["mu"], axes=[-1]), node("Sub", ["x", "mu"], ["c"]), node("Mul", ["c", "c"], ["c2"]),
        node("ReduceMean", ["c2"], ["var"], axes=[-1]), node("Sqrt", ["var"], ["sd"]), node("Div", ["c", "sd"], ["n"]),
        node("Mul", ["n", "g"], ["m"]), node("Add", ["m", "b"], ["s"]), node("MatMul", ["s", "w"], ["p"]), node("Add", ["p", "k"], ["y"]),
    ]  # fmt: skip
    refused(model(norm, {"x": [2, 5]}, ["y"], {"g": array(5), "b": array(5), "w": array(5, 4), "k": array(4)}), "the runtime fuses")


# --- subgraphs and functions --------------------------------------------------------------------------------------


def test_inside_a_subgraph() -> None:
    def branch(name: str, nodes, out: str):
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, 1, None)])

    then = branch("then", [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "m"], ["t"])], "t")
    other = branch("else", [node("Conv", ["x", "w"], ["d"]), node("Add", ["d", "m"], ["e"])], "e")
    before = model(
        [node("If", ["cond"], ["y"], then_branch=then, else_branch=other)],
        {"x": IMAGE, "cond": []},
        {"y": [2, 4, 4, 4]},
        {"w": array(4, 3, 3, 3), "m": CHANNEL},
        types={"cond": 9},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 2
    for cond in (True, False):
        assert_same(before, after, {"x": array(*IMAGE), "cond": np.asarray(cond)})


def test_inside_a_function() -> None:
    constants = [node("Constant", [], [k], value=numpy_helper.from_array(v)) for k, v in {"w": array(4, 3, 3, 3), "m": CHANNEL}.items()]
    body = [*constants, node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "m"], ["d"]), node("Add", ["d", "m"], ["y"])]
    function = helper.make_function("local", "Block", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    before = model(
        [helper.make_node("Block", ["x"], ["y"], domain="local")],
        {"x": IMAGE},
        {"y": [2, 4, 4, 4]},
        functions=[function],
        opsets={"local": 1},
    )
    after, log = run_pass(before, NAME)
    assert log.applied == 2
    assert [n.op_type for n in after.functions[0].node if n.op_type != "Constant"] == ["Conv"]
    assert_same(before, after, {"x": array(*IMAGE)})


def test_float16() -> None:
    before = model(
        [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "m"], ["y"])],
        {"x": IMAGE},
        {"y": [2, 4, 4, 4]},
        {"w": array(4, 3, 3, 3, dtype="float16"), "m": CHANNEL.astype("float16")},
        types={"x": 10, "y": 10},
    )
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert_same(before, after, {"x": array(*IMAGE, dtype="float16")}, rtol=5e-3)


def test_a_scale_behind_a_hard_swish_is_no_part_of_it() -> None:
    nodes = [
        node("HardSigmoid", ["x"], ["h"], alpha=1 / 6, beta=0.5), node("Mul", ["x", "h"], ["g"]), node("Mul", ["g", "m"], ["s"]),
        node("Add", ["s", "a"], ["t"]), node("Conv", ["t", "w"], ["y"]),
    ]  # fmt: skip
    weights = {"m": np.float32([0.7]), "a": np.float32([0.2]), "w": array(4, 3, 1, 1)}
    before = model(nodes, {"x": (2, 3, 6, 6)}, ["y"], weights)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"HardSigmoid": 1, "Mul": 1, "Conv": 1}
    assert_same(before, after, {"x": array(2, 3, 6, 6)})
