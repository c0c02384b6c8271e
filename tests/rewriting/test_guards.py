"""Guards: what they establish and the reasons they refuse with."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt.rewriting import Refuse, guards
from graphopt.rewriting.uses import is_used, use_count
from tests.rewriting.graphs import load
from tests.support import array, model, node


def branch(name: str, nodes) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(f"{name}_y", 1, [3])])


@pytest.fixture
def values():
    nodes = [
        node("Relu", ["x"], ["once"]),
        node("Relu", ["x"], ["twice"]),
        node("Relu", ["x"], ["captured"]),
        node("Relu", ["x"], ["out"]),
        node("Relu", ["x"], ["unused"]),
        node("Add", ["once", "k"], ["sum"]),
        node("Sum", ["twice", "twice", "over", "out", "whole", "sum"], ["y"]),
        node(
            "If",
            ["cond"],
            ["z"],
            then_branch=branch("then", [node("Neg", ["captured"], ["then_y"])]),
            else_branch=branch("else", [node("Neg", ["x"], ["else_y"])]),
        ),
        node("Cast", ["whole"], ["i"], to=TensorProto.INT64),
    ]
    weights = {"k": array(3), "over": array(3), "whole": array(3)}
    graph = load(
        model(
            nodes,
            {"x": [3], "cond": []},
            {"y": [3], "z": [3], "out": [3], "i": [3]},
            weights,
            overridable=["over"],
            types={"cond": TensorProto.BOOL, "i": TensorProto.INT64},
        )
    )
    found = {v.name: v for n in graph.graph for v in n.outputs}
    return found | {v.name: v for v in graph.graph.initializers.values()} | {v.name: v for v in graph.graph.inputs}


def refusal(function, *arguments) -> str:
    with pytest.raises(Refuse) as caught:
        function(*arguments)
    return caught.value.reason


def test_only_consumer(values) -> None:
    guards.only_consumer(values["once"], "the value", values["sum"].producer())
    twice = refusal(guards.only_consumer, values["twice"], "the value", values["y"].producer())
    assert twice == "the value 'twice' has 2 consumers: y"  # one node that takes it twice
    assert "graph output" in refusal(guards.only_consumer, values["out"], "the value", values["y"].producer())
    assert "captured by a subgraph" in refusal(guards.only_consumer, values["captured"], "the value", values["y"].producer())
    unused = refusal(guards.only_consumer, values["unused"], "the value", values["y"].producer())
    assert unused == "the value 'unused' has 0 consumers"


@pytest.mark.parametrize(
    "count, named", [(2, "2 consumers: n0, n1"), (3, "3 consumers: n0, n1, n2"), (9000, "9000 consumers: n0, n1, n2 and 8997 more")]
)
def test_consumers_are_named(count, named) -> None:
    value = ir.Value(name="v")
    nodes = [ir.Node("", "Neg", [value], name=f"n{i}") for i in range(count)]
    assert refusal(guards.only_consumer, value, "the value", nodes[0]) == f"the value 'v' has {named}"


def test_consumers_without_a_name() -> None:
    value = ir.Value(name="v")
    nodes = [ir.Node("", "Neg", [value], outputs=[ir.Value(name=f"o{i}")]) for i in range(2)]
    assert refusal(guards.only_consumer, value, "the value", nodes[0]).endswith("2 consumers: Neg(o0), Neg(o1)")


def test_constants(values) -> None:
    np.testing.assert_array_equal(guards.constant(values["k"], "the bias"), array(3))
    assert "may override" in refusal(guards.constant, values["over"], "the bias")
    assert "the bias 'once' is not constant" in refusal(guards.constant, values["once"], "the bias")
    assert "left out" in refusal(guards.constant, None, "the bias")
    guards.float_constant(values["k"], "the bias")
    assert "not a type" in refusal(guards.float_constant, values["k"], "the bias", ())


def test_the_rest(values) -> None:
    guards.require(True, "no")
    assert refusal(guards.require, False, "no") == "no"
    guards.unused_outputs(values["unused"].producer(), 0)
    assert "is used" in refusal(guards.unused_outputs, values["once"].producer(), 0)
    assert "is used" in refusal(guards.unused_outputs, values["out"].producer(), 0)
    inner = values["z"].producer().attributes["then_branch"].as_graph()[0]
    assert "different graphs" in refusal(guards.same_graph, values["y"].producer(), inner)
    assert "finite" in refusal(guards.finite, np.float32([1, np.inf]), "the weight")
    assert guards.attribute(values["i"].producer(), "to") == TensorProto.INT64
    assert guards.attribute(values["i"].producer(), "saturate", 1) == 1


def test_uses(values) -> None:
    assert (use_count(values["once"]), use_count(values["twice"]), use_count(values["captured"]), use_count(values["unused"])) == (
        1,
        2,
        1,
        0,
    )
    assert is_used(values["captured"]) and is_used(values["out"]) and not is_used(values["unused"])


def test_a_parameter_of_a_function_is_refused() -> None:
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [node("LeakyRelu", ["a"], ["b"])], [helper.make_opsetid("", 17)], attributes=["slope"]
    )
    function.node[0].attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    graph = load(
        model([node("F", ["x"], ["y"], domain="local", slope=0.1)], {"x": [3]}, {"y": [3]}, functions=[function], opsets={"local": 1})
    )
    inner = next(iter(graph.functions.values()))[0]
    assert "parameter of the function" in refusal(guards.attribute, inner, "alpha")
