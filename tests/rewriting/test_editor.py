"""The editor: names, metadata, provenance, and what goes with what is removed."""

import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt.rewriting import ChangeLog, Context, Editor, Match, op, origin, remove_unused, var
from tests.rewriting.graphs import kinds, load, result, rewrite, run, turn
from tests.support import array, assert_same, model, node, run_pass


def branch(name: str, nodes, output: str | None = None) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(output or f"{name}_y", 1, [3])])


def test_inner_values_and_outputs_keep_their_names() -> None:
    before = model([node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["y"])], {"x": [3]}, ["y"])
    graph = load(before)
    run(turn("Relu", "Abs"), graph)
    after = result(graph)
    assert [list(n.output) for n in after.graph.node] == [["a"], ["y"]]
    assert len({n.name for n in after.graph.node}) == 2
    assert list(after.graph.output) == list(before.graph.output)


def test_an_input_behind_an_output_gets_an_identity() -> None:
    before = model([node("Mul", ["x", "k"], ["y"]), node("Mul", ["x", "k"], ["z"])], {"x": [3]}, ["y", "z"], {"k": np.float32(1)})
    graph = load(before)
    run(rewrite((op("Mul", var("x"), var()),), lambda m, e: e.replace(m.root.outputs[0], m["x"])), graph)
    after = result(graph)
    assert kinds(graph) == ["Identity", "Identity"] and not after.graph.initializer
    assert_same(before, after, {"x": array(3)}, exact=True)


def test_an_initializer_behind_an_output_gets_an_identity() -> None:
    before = model([node("Mul", ["k", "x"], ["y"])], {"x": [3]}, ["y"], {"k": array(3)})
    graph = load(before)
    run(rewrite((op("Mul", var("k"), var("x")),), lambda m, e: e.replace(m.root.outputs[0], m["k"])), graph)
    assert kinds(graph) == ["Identity"] and [o.name for o in result(graph).graph.output] == ["y"]


def test_an_outer_value_as_the_output_of_a_subgraph() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node(
            "If",
            ["cond"],
            ["y"],
            then_branch=branch("then", [node("Identity", ["r"], ["then_y"])]),
            else_branch=branch("else", [node("Mul", ["r", "one"], ["else_y"])]),
        ),
    ]
    before = model(nodes, {"x": [3], "cond": []}, {"y": [3]}, {"one": np.float32(1)}, types={"cond": TensorProto.BOOL})
    after, log = run_pass(before, "eliminate-identity")
    assert log.applied == 0 and "graph output" in log.refusals[0].reason
    after, log = run_pass(before, "eliminate-noop-arithmetic")
    assert log.applied == 1
    for cond in (True, False):
        assert_same(before, after, {"x": array(3), "cond": np.asarray(cond)}, exact=True)


def test_a_renamed_output_that_a_subgraph_captures() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Identity", ["r"], ["out"]),
        node(
            "If",
            ["cond"],
            ["y"],
            then_branch=branch("then", [node("Neg", ["r"], ["then_y"])]),
            else_branch=branch("else", [node("Abs", ["out"], ["else_y"])]),
        ),
    ]
    before = model(nodes, {"x": [3], "cond": []}, {"y": [3], "out": [3]}, types={"cond": TensorProto.BOOL})
    after, log = run_pass(before, "eliminate-identity")
    assert log.applied == 1
    for cond in (True, False):
        assert_same(before, after, {"x": array(3), "cond": np.asarray(cond)}, exact=True)


def test_declared_shapes_and_types_of_outputs_stay() -> None:
    before = model([node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["y"])], {"x": ["batch", 3]}, {"y": ["rows", 3]})
    for name in ("eliminate-identity", "eliminate-noop-shape-ops"):
        after, _ = run_pass(before, name)
        assert list(after.graph.output) == list(before.graph.output)


def test_metadata_and_provenance() -> None:
    proto = model([node("Relu", ["x"], ["a"], name="first"), node("Relu", ["a"], ["y"], name="second")], {"x": [3]}, ["y"])
    proto.graph.node[0].metadata_props.add(key="where", value="block1")
    proto.graph.node[0].doc_string = "kept"
    graph = load(proto)
    run(turn("Relu", "Abs"), graph)
    assert graph.graph[0].metadata_props == {"where": "block1"} and graph.graph[0].doc_string == "kept"
    assert not graph.graph[1].metadata_props
    assert origin(graph.graph[0]) == (("first",), ("test-rewrite",))
    run(
        rewrite((op("Abs", op("Abs", var("x"))),), lambda m, e: e.replace(m.root.outputs[0], e.node("Exp", [m["x"]])), called="later"),
        graph,
    )
    assert origin(graph.graph[0]) == (("second", "first"), ("test-rewrite", "later"))
    assert origin(ir.Node("", "Neg", [], name="new")) == (("new",), ())


def test_new_names_clash_with_none_in_any_scope() -> None:
    inner = branch("then", [node("Neg", ["x"], ["w"], name="fresh"), node("Relu", ["w"], ["then_y"], name="fresh_1")])
    before = model(
        [
            node("If", ["cond"], ["z"], then_branch=inner, else_branch=branch("else", [node("Abs", ["x"], ["else_y"])])),
            node("Relu", ["z"], ["y"]),
        ],
        {"x": [3], "cond": []},
        {"y": [3]},
        {"fresh_2": array(3)},
        types={"cond": TensorProto.BOOL},
    )
    graph = load(before)

    def act(match: Match, editor: Editor) -> None:
        editor.replace(
            match.root.outputs[0], editor.node("Add", [editor.node("Abs", [match["x"]], name="fresh"), editor.constant(array(3), "w")])
        )

    run(rewrite((op("Relu", var("x")),), act), graph)
    made = result(graph)
    names = [v for g in (made.graph, *(a.g for a in made.graph.node[0].attribute)) for n in g.node for v in (*n.output,)]
    names += [i.name for g in (made.graph, *(a.g for a in made.graph.node[0].attribute)) for i in g.initializer]
    assert len(names) == len(set(names))


def test_inputs_and_attributes_of_a_node_that_stays() -> None:
    graph = load(model([node("Relu", ["x"], ["a"]), node("LeakyRelu", ["a"], ["y"], alpha=0.5)], {"x": [3]}, ["y"]))

    def act(match: Match, editor: Editor) -> None:
        editor.set_input(match.root, 0, match["x"])
        editor.set_attribute(match.root, "alpha", None)

    log = run(rewrite((op("LeakyRelu", op("Relu", var("x"))),), act), graph)
    assert log.applied == 1 and kinds(graph) == ["LeakyRelu"] and not graph.graph[0].attributes


def test_nothing_stated_changes_nothing() -> None:
    graph = load(model([node("Relu", ["x"], ["y"])], {"x": [3]}, ["y"]))
    log = run(rewrite((op("Relu", var("x")),), lambda m, e: e.node("Abs", [m["x"]])), graph)
    assert log.asked == 0 and kinds(graph) == ["Relu"] and len(graph.graph.inputs[0].uses()) == 1


def test_dead_nodes_go_with_their_subgraphs_and_what_these_captured() -> None:
    deep = helper.make_graph(
        [node("Add", ["p", "k"], ["deep_y"])],
        "deep",
        [],
        [helper.make_tensor_value_info("deep_y", 1, [3])],
        [onnx.numpy_helper.from_array(array(3), "k")],
    )
    nodes = [
        node("Relu", ["x"], ["p"]),
        node("Exp", ["x"], ["q"]),
        node("Exp", ["q"], ["shared"]),
        node(
            "If",
            ["cond"],
            ["z"],
            then_branch=branch(
                "then", [node("If", ["cond"], ["then_y"], then_branch=deep, else_branch=branch("e2", [node("Neg", ["q"], ["e2_y"])]))]
            ),
            else_branch=branch("else", [node("Add", ["shared", "w"], ["else_y"])]),
        ),
        node("Neg", ["shared"], ["y"]),
    ]
    graph = load(model(nodes, {"x": [3], "cond": []}, {"y": [3], "z": [3]}, {"w": array(3)}, types={"cond": TensorProto.BOOL}))
    graph.graph.outputs.pop()
    context = Context(graph, ChangeLog(""))
    scopes = len(context.index.scopes)
    removed = remove_unused([n for n in graph.graph if n.op_type == "If"], context)
    assert [n.op_type for n in removed] == ["If", "Relu"]
    assert kinds(graph) == ["Exp", "Exp", "Neg"] and not graph.graph.initializers
    assert scopes == 5 and list(context.index.scopes) == [graph.graph]
    assert {t: len(context.index.of_types((t,))) for t in ("If", "Relu", "Exp", "Neg", "Add")} == {
        "If": 0,
        "Relu": 0,
        "Exp": 2,
        "Neg": 1,
        "Add": 0,
    }


@pytest.mark.parametrize("keep", ["consumer", "output", "input"])
def test_what_is_still_needed_is_not_removed(keep: str) -> None:
    graph = load(
        model(
            [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Abs", ["b"], ["y"])],
            {"x": [3]},
            ["y", "a"] if keep == "output" else ["y"],
            {"k": array(3)},
            overridable=["k"],
        )
    )
    context = Context(graph, ChangeLog(""))
    assert remove_unused([graph.graph[0]], context) == []
    assert len(kinds(graph)) == 3 and "k" in graph.graph.initializers


def test_a_node_of_many_inputs_goes_in_linear_time() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    parts = [ir.Node("", "Neg", [x], name=f"n{i}") for i in range(20_000)]
    joined = ir.Node("", "Concat", [p.outputs[0] for p in parts], ir.convenience.convert_attributes({"axis": 0}), name="joined")
    kept = ir.Node("", "Relu", [x], name="kept")
    graph = ir.Model(ir.Graph([x], [kept.outputs[0]], nodes=[*parts, joined, kept], opset_imports={"": 17}, name="g"), ir_version=8)
    started = time.process_time()
    assert len(remove_unused([joined], Context(graph, ChangeLog("")))) == 20_001
    assert kinds(graph) == ["Relu"] and len(x.uses()) == 1
    assert time.process_time() - started < 5


def _into_contrib():
    def replace(match, editor):
        like = match.root.outputs[0]
        editor.replace(like, editor.node("Gelu", [match["x"]], domain="com.microsoft", like=like))

    return rewrite((op("Gelu", var("x")),), replace)


def test_the_domain_of_a_new_operator_is_imported() -> None:
    graph = load(model([node("Gelu", ["x"], ["y"])], {"x": [3]}, ["y"], opset=20, ir_version=9))
    log = run(_into_contrib(), graph)
    assert log.applied == 1 and graph.opset_imports == {"": 20, "com.microsoft": 1}


def test_the_domain_of_a_new_operator_in_a_function() -> None:
    function = helper.make_function("local", "f", ["a"], ["b"], [node("Gelu", ["a"], ["b"])], [helper.make_opsetid("", 20)])
    call = node("f", ["x"], ["y"], domain="local")
    graph = load(model([call], {"x": [3]}, {"y": [3]}, functions=[function], opsets={"local": 1}, opset=20, ir_version=9))
    log = run(_into_contrib(), graph)
    assert log.applied == 1 and "com.microsoft" not in graph.opset_imports
    assert next(iter(graph.functions.values())).opset_imports == {"": 20, "com.microsoft": 1}


def test_an_input_that_was_not_there_is_added_and_a_weight_without_consumers_goes() -> None:
    before = model([node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])], {"x": [1, 2, 3, 3]}, ["y"], {"w": array(2, 2, 1, 1)})
    graph = load(before)

    def change(match, editor) -> None:
        conv = match.root.inputs[0].producer()
        if len(conv.inputs) == 2:
            editor.set_input(conv, 1, editor.constant(array(2, 2, 1, 1, seed=1), "v"))
            editor.set_input(conv, 2, editor.constant(array(2), "k"))

    run(rewrite((op("Relu", var("x")),), change), graph)
    after = result(graph)
    assert [list(n.input) for n in after.graph.node] == [["x", "v", "k"], ["c"]]
    assert {t.name for t in after.graph.initializer} == {"v", "k"}
