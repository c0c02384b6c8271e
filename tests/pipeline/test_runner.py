"""The runner and the bisection: replay, isolation of passes that raise, single applications held back."""

import onnx_ir as ir
import pytest

from graphopt.model import Model
from graphopt.pipeline.bisect import without_culprits
from graphopt.pipeline.presets import Pipeline, Stage
from graphopt.pipeline.runner import Candidate, Hold, run_pipeline
from graphopt.rewriting.changes import application
from tests.pipeline.faulty import NegToRelu, RaiseHalfway
from tests.support import REGISTRY, model, node


def negs(names: list[str]) -> Model:
    nodes, last = [], "x"
    for name in names:
        nodes.append(node("Neg", [last], [f"{name}_out"], name=name))
        last = f"{name}_out"
    nodes += [node("Identity", [last], ["i"]), node("Abs", ["i"], ["y"])]
    return Model.from_ir(ir.from_proto(model(nodes, {"x": [4]}, ["y"])))


def pipeline(*steps, rounds: int = 1) -> Pipeline:
    return Pipeline.of("test", steps, rounds)


def counts(candidate: Candidate) -> dict[str, int]:
    found: dict[str, int] = {}
    for n in candidate.model.graph.graph:
        found[n.op_type] = found.get(n.op_type, 0) + 1
    return found


IDENTITY = REGISTRY.get("eliminate-identity")()


def test_records() -> None:
    source = negs(["a", "b"])
    candidate = run_pipeline(source.fresh, pipeline(IDENTITY, NegToRelu()))
    first, second = candidate.runs
    assert (first.status, first.applied, first.nodes_before, first.nodes_after) == ("kept", 1, 4, 3)
    assert (second.status, second.applied, second.nodes_before, second.nodes_after) == ("kept", 2, 3, 3)
    assert [(a.number, a.pass_name, a.label) for a in candidate.applications] == [
        (0, "eliminate-identity", "i"), (1, "neg-to-relu", "a"), (2, "neg-to-relu", "b"),
    ]
    assert counts(candidate) == {"Mul": 2, "Abs": 1}
    assert [n.op_type for n in source.fresh().graph.graph] == ["Neg", "Neg", "Identity", "Abs"]


def test_nodes_know_the_application_that_made_them() -> None:
    candidate = run_pipeline(negs(["a", "b", "c"]).fresh, pipeline(IDENTITY, NegToRelu()), hold=Hold(applications=frozenset({2})))
    assert [(n.op_type, application(n)) for n in candidate.model.graph.graph] == [("Mul", 1), ("Neg", None), ("Mul", 3), ("Abs", None)]


def test_rounds_end_when_nothing_changes() -> None:
    candidate = run_pipeline(negs(["a"]).fresh, pipeline(NegToRelu(), IDENTITY, rounds=5))
    assert [r.applied for r in candidate.runs] == [1, 1]


def test_a_stage_is_done_with_before_the_next_begins() -> None:
    stages = (Stage((NegToRelu(), IDENTITY), 3), Stage((IDENTITY,), 1))
    candidate = run_pipeline(negs(["a", "b"]).fresh, Pipeline("test", stages))
    assert [(r.name, r.applied, r.nodes_before) for r in candidate.runs] == [
        ("neg-to-relu", 2, 4), ("eliminate-identity", 1, 4), ("eliminate-identity", 0, 3),
    ]


def test_a_pass_that_raises_is_left_out_and_reported() -> None:
    candidate = run_pipeline(negs(["a"]).fresh, pipeline(IDENTITY, RaiseHalfway(), NegToRelu()))
    assert [r.status for r in candidate.runs] == ["kept", "failed", "kept"]
    assert candidate.runs[1].note.startswith("ValueError: half of the work is done (faulty.py:")
    assert counts(candidate) == {"Mul": 1, "Abs": 1}


@pytest.mark.parametrize("limit", range(4))
def test_a_limit_gives_a_prefix(limit: int) -> None:
    candidate = run_pipeline(negs(["a", "b"]).fresh, pipeline(IDENTITY, NegToRelu()), hold=Hold(limit=limit))
    assert [a.number for a in candidate.applications] == list(range(limit))


def test_one_application_held_back() -> None:
    candidate = run_pipeline(negs(["a", "b", "c"]).fresh, pipeline(NegToRelu(), rounds=3), hold=Hold(applications=frozenset({1})))
    assert counts(candidate)["Neg"] == 1
    assert [n.name for n in candidate.model.graph.graph if n.op_type == "Neg"] == ["b"]


def has_relu(candidate: Candidate) -> str | None:
    found = [n.outputs[0].name for n in candidate.model.graph.graph if n.op_type == "Relu"]
    return f"Relu at {found}" if found else None


def search(names: list[str], **kwargs):
    source = negs(names)
    steps = pipeline(IDENTITY, NegToRelu())
    failing = run_pipeline(source.fresh, steps)
    return without_culprits(lambda hold: run_pipeline(source.fresh, steps, hold=hold), has_relu, failing, has_relu(failing), **kwargs)


def test_bisection_finds_the_one_bad_application() -> None:
    names = [f"n{i}" for i in range(20)]
    names[13] = "bad"
    found = search(names)
    assert [(c.pass_name, c.label) for c in found.culprits] == [("neg-to-relu", "bad")]
    assert counts(found.candidate) == {"Mul": 19, "Neg": 1, "Abs": 1}
    assert found.trials <= 8


def test_a_pass_at_fault_twice_is_rolled_back_whole() -> None:
    found = search(["a", "bad1", "b", "bad2", "c"])
    assert [(c.pass_name, c.label is None) for c in found.culprits] == [("neg-to-relu", False), ("neg-to-relu", True)]
    assert counts(found.candidate) == {"Neg": 5, "Abs": 1}
    assert [r.status for r in found.candidate.runs] == ["kept", "rolled-back"]


def test_what_is_wrong_without_any_pass_is_not_blamed_on_one() -> None:
    source = negs(["a"])
    failing = run_pipeline(source.fresh, pipeline(NegToRelu()))
    build = lambda hold: run_pipeline(source.fresh, pipeline(NegToRelu()), hold=hold)  # noqa: E731
    found = without_culprits(build, lambda candidate: "always", failing, "always")
    assert [c.pass_name for c in found.culprits] == ["(none)"]
    assert not found.candidate.changed
