"""Parallel convolutions that are added up: which merge into one, and which must stay."""

import itertools

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

NAME = "merge-repvgg-branches"
X = (2, 4, 7, 7)
NORM = {p: array(4, seed=i, low=0.5) for i, p in enumerate("sbmv", 20)}


def branches(*convs, identity=None, order=1, x=X, add="Add", cin=4, shape="y", **kwargs):
    """The sum of convolutions (weight shape, attributes, bias), and of x or a norm of it, added left to right."""
    weights, nodes, terms = {}, [], []
    for i, (dims, attributes, bias) in enumerate(convs):
        weights[f"w{i}"] = array(*dims, seed=i)
        if bias:
            weights[f"k{i}"] = array(dims[0], seed=10 + i)
        nodes.append(node("Conv", ["x", f"w{i}", *([f"k{i}"] if bias else [])], [f"c{i}"], **attributes))
        terms.append(f"c{i}")
    if identity == "x":
        terms.append("x")
    elif identity == "norm":
        weights |= NORM
        nodes.append(node("BatchNormalization", ["x", *"sbmv"], ["n"]))
        terms.append("n")
    terms = terms[::order]
    for i, term in enumerate(terms[1:]):
        last = i == len(terms) - 2
        nodes.append(node(add, [terms[0] if i == 0 else f"a{i - 1}", term], ["y" if last else f"a{i}"]))
    return model(nodes, {"x": x}, {"y": [None] * len(x)}, weights, **kwargs)


def merged(before, feed=X, **kwargs) -> None:
    after, log = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}, (ops(after), reasons(log))
    assert_same(before, after, {"x": array(*feed)}, **kwargs)


def refused(before, reason: str, **options) -> None:
    after, log = run_pass(before, NAME, **options)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


K3, K1 = {"pads": [1] * 4}, {}


@pytest.mark.parametrize("identity", [None, "x", "norm"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_repvgg_block(identity, order: int, bias: bool, group: int) -> None:
    g = {"group": group}
    merged(branches(((4, 4 // group, 3, 3), K3 | g, bias), ((4, 4 // group, 1, 1), K1 | g, not bias), identity=identity, order=order))


@pytest.mark.parametrize("identity", ["x", "norm"])
@pytest.mark.parametrize("order", [1, -1])
def test_one_convolution_and_the_identity(identity: str, order: int) -> None:
    merged(branches(((4, 4, 3, 3), K3, True), identity=identity, order=order))
    merged(branches(((4, 4, 1, 1), K1, False), identity=identity, order=order))
    merged(branches(((4, 1, 3, 3), K3 | {"group": 4}, False), identity=identity, order=order, add="Sum"))


@pytest.mark.parametrize("stride", [[2, 2], [1, 2]])
def test_strided(stride) -> None:
    merged(branches(((6, 4, 3, 3), K3 | {"strides": stride}, True), ((6, 4, 1, 1), K1 | {"strides": stride}, True)))


def test_asymmetric_kernels() -> None:
    merged(branches(((6, 4, 3, 3), K3, True), ((6, 4, 1, 3), {"pads": [0, 1, 0, 1]}, True), ((6, 4, 3, 1), {"pads": [1, 0, 1, 0]}, True)))


def test_taps_that_do_not_overlap() -> None:
    merged(branches(((6, 4, 1, 2), {"pads": [0, 0, 0, 1]}, True), ((6, 4, 1, 2), {"pads": [0, 1, 0, 0]}, True)))


def test_dilations() -> None:
    merged(
        branches(((4, 4, 3, 3), {"pads": [2] * 4, "dilations": [2, 2]}, True), ((4, 4, 1, 1), {"dilations": [3, 3]}, True), identity="x")
    )


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("kernel", [3, 2])
def test_auto_pad(auto_pad: str, kernel: int) -> None:
    merged(branches(((4, 4, kernel, kernel), {"auto_pad": auto_pad}, True), ((4, 4, 1, 1), {"auto_pad": "VALID"}, True), identity="x"))


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int) -> None:
    x = (2, 4, *[5] * rank)
    merged(branches(((4, 4, *[3] * rank), {"pads": [1] * (2 * rank)}, True), ((4, 4, *[1] * rank), {}, True), identity="norm", x=x), x)


@pytest.mark.parametrize(("k", "stride", "dilation", "pads"), list(itertools.product((2, 3), (1, 2), (1, 2), ((0, 1), (1, 1), (1, 2)))))
def test_whatever_merges_is_right(k: int, stride: int, dilation: int, pads) -> None:
    """Forms of padding that may or may not fit: if they are merged, the numbers hold at several sizes."""
    convs = ((4, 4, k), {"pads": list(pads), "strides": [stride], "dilations": [dilation]}, True), ((4, 4, 1), {"strides": [stride]}, False)
    for length in (5, 6, 7, 8):
        excess = pads[0] + pads[1] - (k - 1) * dilation
        if excess != 0 and (length + excess - 1) // stride != (length - 1) // stride:
            continue  # not even a valid sum
        before = branches(*convs, x=(2, 4, length))
        after, _ = run_pass(before, NAME)
        assert_same(before, after, {"x": array(2, 4, length)})
        if excess == 0 and pads[0] % dilation == 0:
            assert ops(after) == {"Conv": 1}


def test_symbolic_sizes() -> None:
    before = branches(((4, 4, 3, 3), K3, True), ((4, 4, 1, 1), K1, True), identity="x", x=("n", 4, "h", "w"))
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    for size in (1, 2, 9):
        assert_same(before, after, {"x": array(1, 4, size, size + 1)})


def test_float16() -> None:
    before = branches(((4, 4, 3, 3), K3, True), identity="x")
    convert = {t.name: numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name) for t in before.graph.initializer}
    for tensor in before.graph.initializer:
        tensor.CopyFrom(convert[tensor.name])
    for info in (*before.graph.input, *before.graph.output):
        info.type.tensor_type.elem_type = 10
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1}
    assert_same(before, after, {"x": array(*X, dtype="float16")}, rtol=5e-3)


def sums(*convs, more=(), terms=(), weights=(), x=X):
    """One Sum of convolutions (weight shape, attributes) with a bias each, and of `terms`, which the nodes `more` make."""
    tensors, nodes, names = dict(weights), [], []
    for i, (dims, attributes) in enumerate(convs):
        tensors |= {f"w{i}": array(*dims, seed=i), f"k{i}": array(dims[0], seed=10 + i)}
        nodes.append(node("Conv", ["x", f"w{i}", f"k{i}"], [f"c{i}"], **attributes))
        names.append(f"c{i}")
    return model([*nodes, *more, node("Sum", [*names, *terms], ["y"])], {"x": x}, {"y": [None] * len(x)}, tensors)


@pytest.mark.parametrize("group", [1, 4])
def test_a_sum_of_many(group: int) -> None:
    """As in MobileOne: some 3x3, one 1x1, and a norm of the input; all at once."""
    dims = (4, 4 // group)
    convs = [((*dims, 3, 3), K3 | {"group": group})] * 4 + [((*dims, 1, 1), {"group": group})]
    before = sums(*convs, more=[node("BatchNormalization", ["x", *"sbmv"], ["n"])], terms=["n", "x"], weights=NORM)
    after, log = run_pass(before, NAME)
    assert ops(after) == {"Conv": 1} and log.applied == 1, reasons(log)
    assert_same(before, after, {"x": array(*X)})


AVERAGE = {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_an_average(normed: bool, stride: int, group: int) -> None:
    strides = {"strides": [stride] * 2}
    more = [node("AveragePool", ["x"], ["a"], **AVERAGE, **strides)]
    if normed:
        more.append(node("BatchNormalization", ["a", *"sbmv"], ["n"]))
    term = "n" if normed else "a"
    conv = (4, 4 // group, 3, 3), K3 | strides | {"group": group}
    for convs in ([conv], [conv, conv]):
        merged(sums(*convs, more=more, terms=[term], weights=NORM if normed else {}))


def test_other_terms_stay_in_the_sum() -> None:
    more = [node("Sigmoid", ["x"], ["s"]), node("Relu", ["x"], ["r"]), node("Conv", ["r", "v"], ["d"], pads=[1] * 4)]
    before = sums(((4, 4, 3, 3), K3), ((4, 4, 1, 1), K1), more=more, terms=["s", "d"], weights={"v": array(4, 4, 3, 3, seed=9)})
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 2, "Sigmoid": 1, "Relu": 1, "Sum": 1}
    assert_same(before, after, {"x": array(*X)})


# --- what must not merge ------------------------------------------------------------------------------------------


def test_differences_between_branches() -> None:
    refused(branches(((4, 4, 3, 3), K3, True), ((4, 1, 1, 1), {"group": 4}, True)), "groups")
    refused(branches(((4, 4, 3, 3), K3, True), ((1, 4, 1, 1), {}, True)), "channels")
    refused(branches(((4, 4, 3, 3), K3 | {"strides": [2, 2]}, True), ((4, 4, 1, 1), {"strides": [3, 3]}, True), x=(2, 4, 1, 1)), "strides")
    refused(branches(((4, 4, 3, 3), {}, True), ((4, 4, 1, 1), {}, True), x=(2, 4, 3, 3)), "pad to different sizes")
    twice = {"pads": [2] * 4, "dilations": [2, 2]}
    refused(branches(((4, 4, 3, 3), K3, True), ((4, 4, 3, 3), twice, True)), "dilations")
    refused(branches(((4, 4, 3, 3), {"pads": [1, 1, 3, 3], "dilations": [2, 2]}, True), ((4, 4, 1, 1), {}, True)), "one grid")


def test_cost() -> None:
    refused(branches(((4, 4, 1, 7), {"pads": [0, 3, 0, 3]}, True), ((4, 4, 7, 1), {"pads": [3, 0, 3, 0]}, True)), "would compute more")


def test_strided_identity() -> None:
    refused(branches(((4, 4, 3, 3), K3 | {"strides": [2, 2]}, True), identity="x", x=(2, 4, 1, 1)), "not strided")


def test_identity_with_another_number_of_channels() -> None:
    refused(branches(((1, 4, 3, 3), K3, True), identity="x"), "number of channels")


def test_auto_pad_with_a_stride() -> None:
    same = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    refused(branches(((4, 4, 3, 3), same, True), ((4, 4, 1, 1), {"strides": [2, 2]}, True)), "depends on the size")


def test_averages_that_are_no_convolution() -> None:
    def average(**attributes):
        made = {k: v for k, v in (AVERAGE | attributes).items() if v is not None}
        return sums(((4, 4, 3, 3), K3), more=[node("AveragePool", ["x"], ["a"], **made)], terms=["a"])

    refused(average(count_include_pad=0), "leaves out what it pads")
    refused(average(ceil_mode=1), "rounds the size")
    inner = sums(((4, 4, 1, 1), K1), more=[node("AveragePool", ["x"], ["a"], **AVERAGE)], terms=["a"])
    refused(inner, "would compute more")
    twice = [node("AveragePool", ["x"], ["a"], **AVERAGE), node("Relu", ["a"], ["r"])]
    refused(sums(((4, 4, 3, 3), K3), more=twice, terms=["a", "r"]), "2 consumers")


def test_norm_in_training() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("BatchNormalization", ["x", *"sbmv"], ["n", "m1", "v1"], training_mode=1),
        node("Add", ["c", "n"], ["y"]),
    ]
    refused(model(nodes, {"x": X}, ["y"], {"w": array(4, 4, 1, 1), **NORM}), "training mode")


def test_consumers_and_outputs() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Conv", ["x", "v"], ["d"]), node("Add", ["c", "d"], ["y"]), node("Relu", ["d"], ["z"])]
    weights = {"w": array(4, 4, 1, 1), "v": array(4, 4, 1, 1, seed=1)}
    refused(model(nodes, {"x": X}, ["y", "z"], weights), "2 consumers")
    refused(model(nodes[:3], {"x": X}, ["y", "c"], weights), "also a graph output")
    twice = [node("Conv", ["x", "w"], ["c"]), node("Add", ["c", "c"], ["y"])]
    refused(model(twice, {"x": X}, ["y"], {"w": array(4, 4, 1, 1)}), "2 consumers")


def test_weights_that_are_not_constant_or_shared() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Conv", ["x", "v"], ["d"]), node("Add", ["c", "d"], ["y"])]
    weights = {"w": array(4, 4, 1, 1), "v": array(4, 4, 1, 1, seed=1)}
    refused(model(nodes, {"x": X}, ["y"], weights, overridable=["v"]), "a caller may override it")
    shared = [*nodes, node("Conv", ["x", "w"], ["z"])]
    before = model(shared, {"x": X}, ["y", "z"], weights)
    refused(before, "has other consumers", max_growth_bytes=0)
    after, _ = run_pass(before, NAME)
    assert ops(after) == {"Conv": 2}
    assert_same(before, after, {"x": array(*X)})


def test_other_inputs_are_no_match() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Conv", ["x2", "w"], ["d"]), node("Add", ["c", "d"], ["y"])]
    before = model(nodes, {"x": X, "x2": X}, ["y"], {"w": array(4, 4, 1, 1)})
    after, log = run_pass(before, NAME)
    assert ops(after) == ops(before)
    assert log.refusals == []


def test_captured_by_a_subgraph_and_inside_one() -> None:
    def branch(name: str, nodes, out: str):
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, 1, None)])

    weights = {"w": array(4, 4, 1, 1), "v": array(4, 4, 1, 1, seed=1)}
    pair = [node("Conv", ["x", "w"], ["c"]), node("Conv", ["x", "v"], ["d"])]
    inside = node(
        "If",
        ["cond"],
        ["y"],
        then_branch=branch("t", [*pair, node("Add", ["c", "d"], ["t1"])], "t1"),
        else_branch=branch("e", [node("Neg", ["x"], ["e1"])], "e1"),
    )
    before = model([inside], {"x": X, "cond": []}, {"y": X}, weights, types={"cond": 9})
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    assert_same(before, after, {"x": array(*X), "cond": np.asarray(True)})
    across = node(
        "If",
        ["cond"],
        ["y"],
        then_branch=branch("t", [node("Add", ["c", "d"], ["t1"])], "t1"),
        else_branch=branch("e", [node("Neg", ["c"], ["e1"])], "e1"),
    )
    refused(model([*pair, across], {"x": X, "cond": []}, {"y": X}, weights, types={"cond": 9}), "different graphs")


def test_inside_a_function() -> None:
    constants = [
        node("Constant", [], [k], value=numpy_helper.from_array(v)) for k, v in {"w": array(4, 4, 3, 3), "v": array(4, 4, 1, 1)}.items()
    ]
    body = [*constants, node("Conv", ["x", "w"], ["c"], pads=[1] * 4), node("Conv", ["x", "v"], ["d"]), node("Add", ["c", "d"], ["y"])]
    function = helper.make_function("local", "Block", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    before = model([helper.make_node("Block", ["x"], ["y"], domain="local")], {"x": X}, {"y": X}, functions=[function], opsets={"local": 1})
    after, log = run_pass(before, NAME)
    assert log.applied == 1
    assert_same(before, after, {"x": array(*X)})
