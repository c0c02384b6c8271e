"""Double precision turned to float32, with inputs and outputs as they were."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.pipeline.presets import load_preset, preset_names
from tests.support import REGISTRY, array, assert_same, model, node, ops, reasons, run_pass

NAME = "double-to-float"
DOUBLE = TensorProto.DOUBLE


def double(nodes, inputs, outputs, weights=None, **kwargs):
    names = [*inputs, *outputs]
    types = dict.fromkeys(names, DOUBLE) | kwargs.pop("types", {})
    return model(nodes, inputs, outputs, weights, types=types, **kwargs)


def element_types(proto: onnx.ModelProto) -> list[int]:
    return [v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)]


def converted(before, left, feeds) -> onnx.ModelProto:
    after, log = run_pass(before, NAME)
    assert log.applied == 1, reasons(log)
    assert ops(after) == left
    assert element_types(after) == element_types(before)
    assert all(t.data_type != DOUBLE for t in after.graph.initializer)
    assert_same(before, after, feeds, rtol=1e-5)
    return after


def refused(before, reason: str) -> None:
    after, log = run_pass(before, NAME)
    assert after.SerializeToString() == before.SerializeToString() or ops(after) == ops(before)
    assert log.applied == 0 and any(reason in r for r in reasons(log)), reasons(log)


def test_a_product() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "k"], ["b"]), node("Relu", ["b"], ["y"])]
    weights = {"w": array(5, 4, dtype="float64"), "k": array(4, dtype="float64")}
    before = double(nodes, {"x": [3, 5]}, ["y"], weights)
    converted(before, {"Cast": 2, "MatMul": 1, "Add": 1, "Relu": 1}, {"x": array(3, 5, dtype="float64")})


def test_symbolic_sizes_and_several_uses() -> None:
    nodes = [node("Mul", ["x", "x"], ["y"]), node("Add", ["y", "x"], ["z"])]
    before = double(nodes, {"x": ["n", 5]}, {"y": ["n", 5], "z": ["n", 5]})
    converted(before, {"Cast": 3, "Mul": 1, "Add": 1}, {"x": array(3, 5, dtype="float64")})


def test_casts_and_constants_inside() -> None:
    """Only what is inside is double: the interface needs no Cast."""
    nodes = [
        node("Cast", ["x"], ["a"], to=DOUBLE), node("Constant", [], ["c"], value=numpy_helper.from_array(np.float64(3))),
        node("ConstantOfShape", ["s"], ["d"], value=numpy_helper.from_array(np.float64([2]))), node("Mul", ["a", "c"], ["b"]),
        node("Add", ["b", "d"], ["e"]), node("Cast", ["e"], ["y"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    before = model(nodes, {"x": [2, 3]}, ["y"], {"s": np.asarray([3])})
    after = converted(before, {"Cast": 2, "Constant": 1, "ConstantOfShape": 1, "Mul": 1, "Add": 1}, {"x": array(2, 3)})
    assert not any(DOUBLE in [a.i for a in n.attribute if a.name == "to"] for n in after.graph.node)


def test_in_a_subgraph() -> None:
    def branch(name, kind):
        output = helper.make_tensor_value_info(f"{name}_y", DOUBLE, [3])
        return helper.make_graph([node(kind, ["a", "k"], [f"{name}_y"])], name, [], [output])

    nodes = [node("Abs", ["x"], ["a"]), node("If", ["c"], ["y"], then_branch=branch("t", "Add"), else_branch=branch("e", "Mul"))]
    before = double(nodes, {"x": [3], "c": []}, {"y": [3]}, {"k": array(3, dtype="float64")}, types={"c": TensorProto.BOOL})
    for c in (True, False):
        converted(before, {"Cast": 2, "Abs": 1, "If": 1}, {"x": array(3, dtype="float64"), "c": np.asarray(c)})


def test_nothing_to_do() -> None:
    _, log = run_pass(model([node("Relu", ["x"], ["y"])], {"x": [3]}, ["y"]), NAME)
    assert log.applied == 0 and log.refusals == []


@pytest.mark.parametrize(("number", "reason"), [(1e300, "too large"), (1e-300, "too small")])
def test_constants_out_of_range(number: float, reason: str) -> None:
    refused(double([node("Mul", ["x", "k"], ["y"])], {"x": [3]}, ["y"], {"k": np.float64(number)}), reason)


def test_overridable_constants_and_functions() -> None:
    nodes = [node("Mul", ["x", "k"], ["y"])]
    refused(double(nodes, {"x": [3]}, ["y"], {"k": array(3, dtype="float64")}, overridable=["k"]), "may override")
    function = helper.make_function("local", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)])
    call = helper.make_node("Twice", ["x"], ["y"], domain="local")
    refused(double([call], {"x": [3]}, {"y": [3]}, functions=[function], opsets={"local": 1}), "local functions")


def test_operators_of_other_domains() -> None:
    call = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft", name="g")
    refused(double([call], {"x": [3]}, {"y": [3]}, opsets={"com.microsoft": 1}), "computes in double")


def test_it_is_in_no_preset() -> None:
    for preset in preset_names():
        assert all(step.name != NAME for step in load_preset(preset, REGISTRY).steps)
