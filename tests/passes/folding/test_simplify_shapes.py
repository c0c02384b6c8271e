"""Shape arithmetic: targets that become constant, and Shape beside what can be fused."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support import array, assert_same, model, node, ops, reasons, run_pass

I64 = TensorProto.INT64


def size_of(value, axis, name):
    """The size of one axis as a vector of one element, as exporters write it."""
    return [
        node("Shape", [value], [f"{name}_s"]), node("Gather", [f"{name}_s", f"i{axis}"], [f"{name}_g"]),
        node("Unsqueeze", [f"{name}_g", "i0v"], [name]),
    ]


CONSTANTS = {"i0": np.array(0), "i1": np.array(1), "i2": np.array(2), "i0v": np.array([0]), "rest": np.array([-1]), "four": np.array([4])}


def reshape(parts, x_shape, target, initializers=None, *, source="x", before=(), **attributes):
    nodes = [*before, *parts, node("Concat", target, ["t"], axis=0), node("Reshape", [source, "t"], ["y"], **attributes)]
    used = {i for n in nodes for i in n.input}
    constants = {k: v for k, v in {**CONSTANTS, **(initializers or {})}.items() if k in used}
    return model(nodes, {"x": x_shape}, {"y": [None] * len(target)}, constants)


def target_of(proto):
    last = proto.graph.node[-1]
    return next((onnx.numpy_helper.to_array(t).tolist() for t in proto.graph.initializer if t.name == last.input[1]), None)


def test_sizes_of_the_input_are_copied() -> None:
    before = reshape([*size_of("x", 0, "a"), *size_of("x", 1, "b")], ["n", "s", 12], ["a", "b", "three", "four"], {"three": np.array([3])})
    after, log = run_pass(before, "simplify-shapes")
    assert ops(after) == {"Reshape": 1}
    assert target_of(after) == [0, 0, 3, 4]
    assert log.applied == 1
    for n, s in ((2, 5), (1, 1), (0, 3)):
        assert_same(before, after, {"x": array(n, s, 12)}, exact=True)


def test_one_size_is_worked_out() -> None:
    before = reshape([*size_of("x", 1, "a")], ["n", "s", 12], ["four", "a", "three"], {"three": np.array([3])})
    assert reasons(run_pass(before, "simplify-shapes")[1]) == []  # copied: it stands where the input has it
    before = reshape([*size_of("x", 1, "a")], [4, "s", 12], ["a", "four", "twelve"], {"twelve": np.array([12])})
    after, _ = run_pass(before, "simplify-shapes")
    assert target_of(after) == [-1, 4, 12]
    for s in (5, 1):
        assert_same(before, after, {"x": array(4, s, 12)}, exact=True)


def test_not_where_another_size_may_be_0() -> None:
    before = reshape([*size_of("x", 0, "a"), *size_of("x", 1, "b")], ["n", "s", "c"], ["a", "four", "b"])
    after, log = run_pass(before, "simplify-shapes")
    assert ops(after) == ops(before)
    assert reasons(log) == ["one size of its target is not known, and another may be 0"]


def test_not_where_two_are_unknown() -> None:
    before = reshape([*size_of("x", 0, "a"), *size_of("x", 1, "b")], ["n", "s", 4], ["b", "a", "four"])
    after, log = run_pass(before, "simplify-shapes")
    assert ops(after) == ops(before)
    assert reasons(log) == ["2 sizes of its target are not known"]
    before = reshape([*size_of("x", 1, "b")], ["n", "s", 4], ["b", "rest", "four"])
    _, log = run_pass(before, "simplify-shapes")
    assert reasons(log) == ["2 sizes of its target are not known"]


def test_allowzero() -> None:
    sizes = [*size_of("x", 0, "a"), *size_of("x", 1, "b")]
    before = reshape(sizes, ["n", "s", 12], ["a", "b", "three", "four"], {"three": np.array([3])}, allowzero=1)
    after, _ = run_pass(before, "simplify-shapes")
    assert target_of(after) == [0, 0, 3, 4]
    assert not after.graph.node[-1].attribute  # 0 copies
    for n in (2, 0):
        assert_same(before, after, {"x": array(n, 5, 12)}, exact=True)
    empty = reshape(size_of("x", 0, "a"), ["n", "s"], ["a", "none"], {"none": np.array([0])}, allowzero=1)
    after, log = run_pass(empty, "simplify-shapes")
    assert ops(after) == ops(empty)
    assert reasons(log)


def test_a_target_from_elsewhere_is_left() -> None:
    before = model([node("Reshape", ["x", "t"], ["y"])], {"x": ["n", 4], "t": [2]}, {"y": [None, None]}, types={"t": I64})
    after, log = run_pass(before, "simplify-shapes")
    assert ops(after) == {"Reshape": 1}
    assert log.applied == 0
    assert not log.refusals


def test_one_name_for_two_sizes_is_not_believed() -> None:
    before = reshape([*size_of("x", 1, "a")], ["d", "d", 4], ["a", "rest", "four"])
    _, log = run_pass(before, "simplify-shapes")
    assert log.applied == 0


def test_expand_to_sizes_that_the_input_has() -> None:
    nodes = [*size_of("x", 0, "a"), node("Concat", ["a", "five", "four"], ["t"], axis=0), node("Expand", ["x", "t"], ["y"])]
    constants = {k: CONSTANTS[k] for k in ("i0", "i0v", "four")} | {"five": np.array([5])}
    before = model(nodes, {"x": ["n", 1, 4]}, {"y": [None, 5, 4]}, constants)
    after, _ = run_pass(before, "simplify-shapes")
    assert ops(after) == {"Expand": 1}
    assert target_of(after) == [1, 5, 4]
    for n in (3, 1, 0):
        assert_same(before, after, {"x": array(n, 1, 4)}, exact=True)


def test_expand_of_a_weight_over_the_batch_stays() -> None:
    nodes = [
        *size_of("x", 0, "a"), node("Concat", ["a", "rest1", "four"], ["t"], axis=0), node("Expand", ["w", "t"], ["e"]),
        node("Concat", ["e", "x"], ["y"], axis=1),
    ]
    constants = {k: CONSTANTS[k] for k in ("i0", "i0v", "four")} | {"rest1": np.array([1]), "w": array(1, 1, 4)}
    before = model(nodes, {"x": ["n", 3, 4]}, {"y": [None, 4, 4]}, constants)
    after, log = run_pass(before, "simplify-shapes")
    assert ops(after) == ops(before)
    assert reasons(log) == ["1 sizes of its target are not known"]


def chain(*, keep="BatchNormalization", output=None):
    parameters = {name: array(4, low=0.5, seed=i) for i, name in enumerate("gbmv")}
    following = node(keep, ["c", *parameters], ["n"]) if keep == "BatchNormalization" else node(keep, ["c"], ["n"])
    outputs = {"y": None, "s": None} | ({output: None} if output else {})
    return model(
        [node("Conv", ["x", "w"], ["c"]), node("Shape", ["c"], ["s"]), following, node("Relu", ["n"], ["y"])],
        {"x": ["n", 3, "h"]}, outputs, {"w": array(4, 3, 1), **parameters}, types={"s": I64},
    )


def test_shape_looks_at_the_end_of_the_chain() -> None:
    before = chain()
    after, log = run_pass(before, "simplify-shapes")
    assert {n.op_type: n.input[0] for n in after.graph.node} == {"Conv": "x", "BatchNormalization": "c", "Relu": "n", "Shape": "y"}
    assert log.applied == 2
    assert_same(before, after, {"x": array(2, 3, 5)}, exact=True)


def test_shape_stays_where_the_chain_does_not_keep_it() -> None:
    for before in (chain(keep="Transpose"), chain(output="c")):
        after, log = run_pass(before, "simplify-shapes")
        assert {n.op_type: n.input[0] for n in after.graph.node}["Shape"] == "c"
        assert log.applied == 0


def test_in_functions_nothing_is_known() -> None:
    function = helper.make_function(
        "local", "f", ["x"], ["y"], [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    before = model([node("f", ["x"], ["y"], domain="local")], {"x": [3]}, {"y": [3]}, functions=[function], opsets={"local": 1})
    after, log = run_pass(before, "simplify-shapes")
    assert [n.op_type for n in after.functions[0].node] == ["Shape", "Reshape"]
    assert log.applied == 0
