"""Rules of onnxscript as passes: what they change, what they refuse, and what is not let through."""

import itertools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from onnxscript.rewriter import RewriteRule, RewriteRuleClassBase
from onnxscript.rewriter.pattern import MatchResult

from graphopt import ChangeLog, Context, Effect, Hold, OnnxscriptRewrite, Pass, run_pipeline
from graphopt.model import Model
from graphopt.pipeline.presets import Pipeline
from graphopt.rewriting import origin, use_count
from tests.rewriting.graphs import kinds, load, result
from tests.support import array, assert_same, model, node, reasons


def adapted(*given, called: str = "test-rules") -> Pass:
    @dataclass(frozen=True)
    class Made(OnnxscriptRewrite):
        """Made for a test."""

        name = called
        effect = Effect.EXACT

        def rules(self):
            return [rule() if callable(rule) else rule for rule in given]

    return Made()


class DoubleRelu(RewriteRuleClassBase):
    def pattern(self, op, x):
        return op.Relu(op.Relu(x))

    def rewrite(self, op, x):
        return op.Relu(x)


class ScaleByOne(RewriteRuleClassBase):
    def pattern(self, op, x, k):
        return op.Mul(x, k)

    def check(self, context, x, k):
        if k.const_value is None:
            return MatchResult().fail("The factor is not known.", k)
        return bool((k.const_value.numpy() == 1).all())

    def rewrite(self, op, x, k):
        return op.Identity(x)


def run(step: Pass, graph: ir.Model, **kwargs) -> ChangeLog:
    log = ChangeLog(step.name, **kwargs)
    step.run(Context(graph, log))
    return log


def relus(count: int) -> list:
    names = ["x", *(f"r{i}" for i in range(1, count)), "y"]
    return [node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]


def test_applied_to_a_fixpoint() -> None:
    before = model([*relus(6), node("Neg", ["y"], ["z"])], {"x": [3]}, ["y", "z"])
    graph = load(before)
    log = run(adapted(DoubleRelu.rule), graph)
    assert log.applied == 5 and kinds(graph) == ["Relu", "Neg"]
    after = result(graph)
    assert [o.name for o in after.graph.output] == ["y", "z"]
    assert_same(before, after, {"x": array(3)}, exact=True)
    names, passes = origin(graph.graph[0])
    assert set(names) == {"r1", "r2", "r3", "r4", "r5", "y"} and passes == ("test-rules",)


def test_single_applications_can_be_held_back() -> None:
    graph = load(model([node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["y"]), node("Relu", ["x"], ["b"]), node("Relu", ["b"], ["z"])],
                       {"x": [3]}, ["y", "z"]))
    log = run(adapted(DoubleRelu.rule), graph, allow=lambda number: number != 0)
    assert [number for number, _ in log.numbered] == [1] and len(kinds(graph)) == 3
    assert use_count(graph.graph.inputs[0]) == 2


def test_conditions_are_refusals_with_their_reasons() -> None:
    nodes = [node("Mul", ["x", "one"], ["a"]), node("Mul", ["a", "w"], ["b"]), node("Mul", ["b", "two"], ["y"])]
    constants = {"one": np.float32(1), "two": np.float32(2)}
    graph = load(model(nodes, {"x": [3], "w": [3]}, ["y"], constants))
    log = run(adapted(ScaleByOne.rule), graph)
    assert kinds(graph) == ["Identity", "Mul", "Mul"]
    assert [(r.node, r.reason) for r in log.refusals] == [("b", "The factor is not known (w)"), ("y", "Condition function check failed")]


def test_a_constant_that_a_caller_may_override() -> None:
    one = {"k": np.float32(1)}
    graph = load(model([node("Mul", ["x", "k"], ["y"])], {"x": [3]}, ["y"], one, overridable=["k"]))
    log = run(adapted(ScaleByOne.rule), graph)
    assert log.applied == 0 and reasons(log) == ["The factor is not known (k)"]
    assert graph.graph.initializers["k"].const_value is not None


def test_constant_nodes_are_constants() -> None:
    one = node("Constant", [], ["k"], value_float=1.0)
    graph = load(model([one, node("Mul", ["x", "k"], ["y"])], {"x": [3]}, ["y"]))
    assert run(adapted(ScaleByOne.rule), graph).applied == 1


def test_what_others_need_stays() -> None:
    graph = load(model([*relus(2), node("Neg", ["r1"], ["z"])], {"x": [3]}, ["y", "z"]))
    log = run(adapted(DoubleRelu.rule), graph)
    assert kinds(graph) == ["Relu", "Relu", "Neg"]
    assert reasons(log) == ["Matched nodes have other uses preventing replacement"]


class Fails(DoubleRelu):
    """Makes a node and gives up."""

    def rewrite(self, op, x):
        op.Neg(x)
        return MatchResult().fail("Nothing comes of it", x)


class FailsSilently(Fails):
    def rewrite(self, op, x):
        op.Neg(x)


class Raises(DoubleRelu):
    def rewrite(self, op, x):
        op.Neg(x)
        raise KeyError("a mistake in the rule")


@pytest.mark.parametrize(("rule", "reason"), [(Fails, "Nothing comes of it (x)"), (FailsSilently, "the rule makes nothing of it")])
def test_a_replacement_that_fails(rule, reason) -> None:
    graph = load(model(relus(2), {"x": [3]}, ["y"]))
    log = run(adapted(rule.rule), graph)
    assert log.applied == 0 and reasons(log) == [reason]
    assert kinds(graph) == ["Relu", "Relu"] and use_count(graph.graph.inputs[0]) == 1  # what was made is gone


def pipeline(*steps: Pass):
    proto = model([*relus(2), node("Mul", ["y", "one"], ["z"])], {"x": [3]}, ["z"], {"one": np.float32(1)})
    return run_pipeline(lambda: Model(load(proto)), Pipeline.of("test", steps), hold=Hold())


def test_a_rule_that_raises_is_left_out() -> None:
    candidate = pipeline(adapted(Raises.rule, called="raises"), adapted(ScaleByOne.rule, called="works"))
    failed, kept = candidate.runs
    assert failed.status == "failed" and "a mistake in the rule" in failed.note
    assert kept.status == "kept" and kinds(candidate.model.graph) == ["Relu", "Relu", "Identity"]


def test_several_rules() -> None:
    candidate = pipeline(adapted(ScaleByOne.rule, DoubleRelu.rule))
    assert kinds(candidate.model.graph) == ["Relu", "Identity"]
    assert {a.pass_name for a in candidate.applications} == {"test-rules"}


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (lambda op, x: (op.Relu(x), op.Neg(x)), "ends in several nodes"),
        (lambda op, x: (op.Relu(op.Neg(x, _outputs=["n"])), op.Neg(x)), "ends in several nodes"),
    ],
)
def test_patterns_that_end_in_several_nodes(pattern, reason) -> None:
    rule = RewriteRule(pattern, lambda op, x, **_: (x, x))
    with pytest.raises(ValueError, match=reason):
        run(adapted(rule), load(model(relus(2), {"x": [3]}, ["y"])))


def test_patterns_that_give_out_inner_values() -> None:
    def pattern(op, x):
        inner = op.Relu(x)
        return op.Neg(inner), inner

    with pytest.raises(ValueError, match="from inside its pattern"):
        run(adapted(RewriteRule(pattern, lambda op, x: (x, x))), load(model(relus(2), {"x": [3]}, ["y"])))


def test_rules_that_make_functions() -> None:
    with pytest.raises(ValueError, match="makes functions"):
        run(adapted(lambda: DoubleRelu.rule(as_function=True)), load(model(relus(2), {"x": [3]}, ["y"])))


class Twice(RewriteRuleClassBase):
    def pattern(self, op, x):
        return op.Add(x, x)

    def rewrite(self, op, x):
        return op.Mul(x, op.initializer(ir.tensor(np.float32(2), name="x")))


def in_function(nodes, **kwargs):
    function = helper.make_function("local", "f", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)])
    return model([node("f", ["x"], ["y"], domain="local")], {"x": [3]}, {"y": [3]}, functions=[function], opsets={"local": 1}, **kwargs)


def test_initializers() -> None:
    before = model([node("Add", ["x", "x"], ["y"])], {"x": [3]}, ["y"])
    graph = load(before)
    assert run(adapted(Twice.rule), graph).applied == 1 and kinds(graph) == ["Mul"]
    assert "x" not in graph.graph.initializers  # the name was taken
    assert_same(before, result(graph), {"x": array(3)}, exact=True)
    log = run(adapted(Twice.rule), load(in_function([node("Add", ["x", "x"], ["y"])])))
    assert log.applied == 0 and "cannot have" in reasons(log)[0]


def test_functions_and_subgraphs() -> None:
    before = in_function(relus(3))
    graph = load(before)
    assert run(adapted(DoubleRelu.rule), graph).applied == 2
    assert_same(before, result(graph), {"x": array(3)}, exact=True)
    then = helper.make_graph([node("Relu", ["r"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, [3])])
    other = helper.make_graph(
        [node("Relu", ["x"], ["o"]), node("Relu", ["o"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, [3])]
    )
    nodes = [node("Relu", ["x"], ["r"]), node("If", ["p"], ["y"], then_branch=then, else_branch=other)]
    graph = load(model(nodes, {"x": [3], "p": []}, {"y": [3]}, types={"p": 9}))
    log = run(adapted(DoubleRelu.rule), graph)
    assert log.applied == 1 and not reasons(log)  # r and what consumes it stand in different graphs


def to_domain(version):
    def replace(op, x):
        return op.Gelu(x, _domain="com.microsoft", **({} if version is None else {"_version": version}))

    return lambda: RewriteRule(lambda op, x: op.Relu(op.Relu(x)), replace)


def test_domains_of_replacements() -> None:
    for version in (None, 1):
        graph = load(model(relus(2), {"x": [3]}, ["y"]))
        assert run(adapted(to_domain(version)), graph).applied == 1 and graph.opset_imports["com.microsoft"] == 1
    graph = load(model(relus(2), {"x": [3]}, ["y"]))
    log = run(adapted(to_domain(7)), graph)
    assert reasons(log) == ["its replacement is for version 7 of com.microsoft, and the model has none"]
    assert "com.microsoft" not in graph.opset_imports and use_count(graph.graph.inputs[0]) == 1


def test_visits_grow_with_the_nodes(monkeypatch) -> None:
    seen = []

    class Counted(DoubleRelu):
        def check(self, context, x):
            seen.append(1)
            return True

    for count in (100, 200):
        seen.clear()
        assert run(adapted(Counted.rule), load(model(relus(count), {"x": [3]}, ["y"]))).applied == count - 1
        assert len(seen) < 3 * count
