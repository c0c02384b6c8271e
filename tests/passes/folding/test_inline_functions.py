"""Inlining of local functions: names, attributes, nesting, and what is left as a call."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphopt.rewriting import ChangeLog, Context
from tests.support import REGISTRY, array, assert_same, model, node, ops, reasons, run_pass

OPSET = [helper.make_opsetid("", 17)]
LOCAL = {"local": 1}


def function(name, inputs, outputs, nodes, *, opsets=OPSET, attributes=(), defaults=()):
    return helper.make_function("local", name, inputs, outputs, nodes, list(opsets), list(attributes), list(defaults))


def call(name, inputs, outputs, **attributes):
    return node(name, inputs, outputs, domain="local", **attributes)


def parameter(node_proto, name, reference, kind=onnx.AttributeProto.FLOAT):
    node_proto.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=reference, type=kind))
    return node_proto


def inlined(proto, feeds=None):
    after, log = run_pass(proto, "inline-functions")
    assert_same(proto, after, feeds or {"x": array(2, 3)}, exact=True)
    return after, log


def test_calls_become_bodies_with_names_of_their_own() -> None:
    twice = function("twice", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Add", ["t", "t"], ["y"])])
    calls = [call("twice", ["x"], ["t"]), call("twice", ["t"], ["y"])]
    before = model(calls, {"x": [2, 3]}, {"y": [2, 3]}, functions=[twice], opsets=LOCAL)
    after, log = inlined(before)
    assert ops(after) == {"Relu": 2, "Add": 2}
    assert log.applied == 3  # two calls, and the function that is no longer called
    assert not after.functions
    names = [v for n in after.graph.node for v in n.output]
    assert len(set(names)) == 4
    assert names[-1] == "y"
    assert "t" in names


def test_nested_functions_and_domains() -> None:
    inner = function("inner", ["x"], ["y"], [helper.make_node("Exp", ["x"], ["y"])])
    outer = function(
        "outer", ["x"], ["y"], [helper.make_node("inner", ["x"], ["t"], domain="local"), helper.make_node("Neg", ["t"], ["y"])],
        opsets=[*OPSET, helper.make_opsetid("local", 1)],
    )
    before = model([call("outer", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}, functions=[inner, outer], opsets=LOCAL)
    after, _ = inlined(before)
    assert ops(after) == {"Exp": 1, "Neg": 1}
    assert not after.functions


def test_attributes_given_defaulted_and_left_out() -> None:
    leaky = function(
        "leaky", ["x"], ["y"], [parameter(helper.make_node("LeakyRelu", ["x"], ["y"]), "alpha", "slope")], attributes=["slope"]
    )
    elu = function(
        "elu", ["x"], ["y"], [parameter(helper.make_node("Elu", ["x"], ["y"]), "alpha", "scale")],
        defaults=[helper.make_attribute("scale", 0.5)],
    )
    before = model(
        [
            call("leaky", ["x"], ["a"], slope=0.3), call("leaky", ["a"], ["b"]), call("elu", ["b"], ["c"]),
            call("elu", ["c"], ["y"], scale=2.0),
        ],
        {"x": [2, 3]}, {"y": [2, 3]}, functions=[leaky, elu], opsets=LOCAL,
    )
    after, _ = inlined(before)
    alphas = [[round(a.f, 3) for a in n.attribute] for n in after.graph.node]
    assert alphas == [[0.3], [], [0.5], [2.0]]


def test_a_constant_without_its_parameter_is_refused() -> None:
    constant = parameter(helper.make_node("Constant", [], ["c"]), "value_float", "scale")
    body = function("scaled", ["x"], ["y"], [constant, helper.make_node("Mul", ["x", "c"], ["y"])], attributes=["scale"])
    before = model([call("scaled", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}, functions=[body], opsets=LOCAL)
    after, log = run_pass(before, "inline-functions")
    assert ops(after) == {"scaled": 1}
    assert reasons(log) == ["parameter scale of the function is left out"]


def test_an_optional_input_left_out() -> None:
    clip = function("clip", ["x", "low", "high"], ["y"], [helper.make_node("Clip", ["x", "low", "high"], ["y"])])
    for inputs in (["x", "", "h"], ["x"]):
        high = {"h": np.array(0.5, np.float32)}
        before = model([call("clip", inputs, ["y"])], {"x": [2, 3]}, {"y": [2, 3]}, high, functions=[clip], opsets=LOCAL)
        after, _ = run_pass(before, "inline-functions")
        assert ops(after) == {"Clip": 1}
        assert [v for v in after.graph.node[0].input if v] == [v for v in inputs if v]


def test_an_output_that_is_an_input() -> None:
    both = function("both", ["x"], ["y", "z"], [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["x"], ["z"])])
    through = function("through", ["x"], ["x", "y"], [helper.make_node("Relu", ["x"], ["y"])])
    before = model(
        [call("both", ["x"], ["a", "b"]), call("through", ["a"], ["y", "z"])], {"x": [2, 3]}, {"y": [2, 3], "z": [2, 3], "b": [2, 3]},
        functions=[both, through], opsets=LOCAL,
    )
    after, log = run_pass(before, "inline-functions")
    assert [o.name for o in after.graph.output] == ["y", "z", "b"]
    assert not after.functions
    assert ops(after)["Relu"] == 2
    assert log.applied == 4


def test_calls_in_subgraphs_and_subgraphs_in_functions() -> None:
    then = helper.make_graph([node("Neg", ["x"], ["t"])], "then", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)])
    other = helper.make_graph([node("Abs", ["r"], ["t"])], "else", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)])
    choose = function(
        "choose", ["x", "k"], ["y"],
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("If", ["k"], ["y"], then_branch=then, else_branch=other)],
    )
    branches = [
        helper.make_graph(
            [call("choose", ["x", "k"], [f"{name}_y"])], name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [2, 3])]
        )
        for name in ("one", "two")
    ]
    before = model(
        [node("If", ["k"], ["a"], then_branch=branches[0], else_branch=branches[1]), call("choose", ["a", "k"], ["y"])],
        {"x": [2, 3], "k": []}, {"y": [2, 3]}, types={"k": TensorProto.BOOL}, functions=[choose], opsets=LOCAL,
    )
    for k in (True, False):
        after, log = inlined(before, {"x": array(2, 3), "k": np.array(k)})
    assert log.applied == 4
    assert not after.functions


def unchecked(proto, *functions):
    """Run the pass where onnx's checker would turn the model away."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    proto.functions.extend(functions)
    graph, log = ir.from_proto(proto), ChangeLog("inline-functions")
    REGISTRY.get("inline-functions").configure().run(Context(graph, log))
    return [n.op_type for n in graph.graph], log


def test_recursion_is_refused() -> None:
    opsets = [*OPSET, helper.make_opsetid("local", 1)]
    loop = function("loop", ["x"], ["y"], [helper.make_node("loop", ["x"], ["y"], domain="local")], opsets=opsets)
    before = model([node("Relu", ["x"], ["r"]), call("loop", ["r"], ["y"])], {"x": [2]}, {"y": [2]}, opsets=LOCAL)
    kept, log = unchecked(before, loop)
    assert kept == ["Relu", "loop"]
    assert reasons(log) == ["the function calls itself"]


def test_other_opsets() -> None:
    old = function("old", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets=[helper.make_opsetid("", 15)])
    before = model([call("old", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}, functions=[old], opsets=LOCAL)
    after, _ = run_pass(before, "inline-functions")
    assert ops(after) == {"Relu": 1}  # Relu means the same in both
    new = function("new", ["x"], ["y"], [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1)], opsets=[helper.make_opsetid("", 18)])
    kept, log = unchecked(model([call("new", ["x"], ["y"])], {"x": [2, 3]}, {"y": [1, 1]}, opsets=LOCAL), new)
    assert kept == ["new"]
    assert reasons(log) == ["its ReduceMean follows version 18 of the standard operators and the model version 17"]


def test_domains_of_the_body_are_imported() -> None:
    opsets = [*OPSET, helper.make_opsetid("elsewhere", 3)]
    body = function("scaled", ["x"], ["y"], [helper.make_node("Magic", ["x"], ["y"], domain="elsewhere")], opsets=opsets)
    before = model([call("scaled", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}, functions=[body], opsets=LOCAL)
    after, _ = run_pass(before, "inline-functions")
    assert {o.domain: o.version for o in after.opset_import}["elsewhere"] == 3
    assert ops(after) == {"Magic": 1}


def test_a_subgraph_as_a_parameter_is_refused() -> None:
    branch = helper.make_graph([node("Relu", ["x"], ["t"])], "b", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, [2])])
    choose = function(
        "choose", ["x", "k"], ["y"],
        [parameter(parameter(helper.make_node("If", ["k"], ["y"]), "then_branch", "b", 5), "else_branch", "b", 5)], attributes=["b"],
    )
    proto = model([node("Relu", ["x"], ["y"])], {"x": [2], "k": []}, {"y": [2]}, types={"k": TensorProto.BOOL}, opsets=LOCAL)
    proto.functions.append(choose)
    proto.graph.node.insert(0, call("choose", ["x", "k"], ["c"], b=branch))
    _, log = unchecked(proto)
    assert reasons(log) == ["a parameter of the function is a subgraph"]


def test_overloads() -> None:
    bodies = []
    for overload, operator in (("a", "Relu"), ("b", "Neg")):
        bodies.append(function("f", ["x"], ["y"], [helper.make_node(operator, ["x"], ["y"])]))
        bodies[-1].overload = overload
    calls = [call("f", ["x"], ["t"]), call("f", ["t"], ["y"])]
    calls[0].overload, calls[1].overload = "b", "a"
    before = model(calls, {"x": [2, 3]}, {"y": [2, 3]}, functions=bodies, opsets=LOCAL, ir_version=10)
    after, _ = run_pass(before, "inline-functions")
    assert [n.op_type for n in after.graph.node] == ["Neg", "Relu"]


def test_constants_of_functions_come_along() -> None:
    weight = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array(3)))
    body = function("scaled", ["x"], ["y"], [weight, helper.make_node("Mul", ["x", "w"], ["y"])])
    before = model([call("scaled", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}, functions=[body], opsets=LOCAL)
    after, _ = inlined(before)
    assert ops(after) == {"Constant": 1, "Mul": 1}


def test_unused_functions_go() -> None:
    unused = function("unused", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])])
    before = model([node("Relu", ["x"], ["y"])], {"x": [2]}, {"y": [2]}, functions=[unused], opsets=LOCAL)
    after, log = run_pass(before, "inline-functions")
    assert not after.functions
    assert log.numbered[0][1] == "function local:unused"
