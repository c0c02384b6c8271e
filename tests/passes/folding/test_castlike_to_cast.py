"""CastLike where the type is known."""

from onnx import TensorProto, helper

from tests.support import array, assert_same, model, node, ops, run_pass


def test_a_cast_that_no_longer_looks_at_the_other_value() -> None:
    before = model(
        [node("Conv", ["x", "w"], ["c"]), node("CastLike", ["k", "c"], ["h"]), node("Add", ["c", "h"], ["y"])], {"x": [1, 3, 8]}, ["y"],
        {"w": array(4, 3, 1), "k": array(1, dtype="float64")},
    )
    after, log = run_pass(before, "castlike-to-cast")
    assert ops(after) == {"Conv": 1, "Cast": 1, "Add": 1}
    assert log.applied == 1
    assert_same(before, after, {"x": array(1, 3, 8)}, exact=True)


def test_nothing_where_the_type_is_right_already() -> None:
    before = model([node("Relu", ["x"], ["r"]), node("CastLike", ["r", "x"], ["y"])], {"x": [3]}, ["y"])
    after, _ = run_pass(before, "castlike-to-cast")
    assert ops(after) == {"Relu": 1}
    assert_same(before, after, {"x": array(3)}, exact=True)


def test_an_input_to_an_output_keeps_a_node() -> None:
    before = model([node("CastLike", ["x", "x"], ["y"])], {"x": [3]}, ["y"])
    after, _ = run_pass(before, "castlike-to-cast")
    assert sum(ops(after).values()) == 1
    assert_same(before, after, {"x": array(3)}, exact=True)


def test_attributes_stay() -> None:
    before = model(
        [node("CastLike", ["x", "k"], ["y"], saturate=0)], {"x": [3]}, {"y": [3]}, {"k": array(1, dtype="float64")}, opset=19,
        ir_version=9, types={"y": TensorProto.DOUBLE},
    )
    after, _ = run_pass(before, "castlike-to-cast")
    assert {a.name: a.i for a in after.graph.node[0].attribute} == {"saturate": 0, "to": TensorProto.DOUBLE}


def test_in_a_function_the_callers_decide() -> None:
    function = helper.make_function(
        "local", "f", ["x", "k"], ["y"], [helper.make_node("CastLike", ["k", "x"], ["h"]), helper.make_node("Mul", ["x", "h"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    before = model(
        [node("f", ["x", "k"], ["y"], domain="local")], {"x": [3]}, {"y": [3]}, {"k": array(1, dtype="float64")}, functions=[function],
        opsets={"local": 1},
    )
    after, log = run_pass(before, "castlike-to-cast")
    assert [n.op_type for n in after.functions[0].node] == ["CastLike", "Mul"]
    assert log.applied == 0
    assert not log.refusals
