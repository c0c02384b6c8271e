"""Replays that begin before the first lossy pass give what whole ones give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.formats import digest
from graphopt.model import Model
from graphopt.pipeline.checkpoints import Checkpoints, place_of
from graphopt.pipeline.presets import Pipeline, Stage
from graphopt.pipeline.runner import Hold, run_pipeline
from graphopt.rewriting import Context, Effect, Pass
from tests.pipeline.faulty import NegToRelu, RaiseHalfway
from tests.support import REGISTRY, array, model, node

IDENTITY = REGISTRY.get("eliminate-identity")()
WEIGHTS = REGISTRY.get("quantize-weights").configure({"min-elements": 1})
DEAD = REGISTRY.get("prune-dead-nodes")()


@dataclass(frozen=True)
class Count(Pass):
    """Count how often it runs."""

    name = "count"
    times: ClassVar[list[int]] = []

    def run(self, context: Context) -> None:
        self.times.append(1)


def source() -> Model:
    nodes = [node("Identity", ["x"], ["i"]), node("MatMul", ["i", "w"], ["a"]), node("Neg", ["a"], ["n"], name="bad"),
             node("MatMul", ["n", "v"], ["b"]), node("Identity", ["b"], ["j"]), node("MatMul", ["j", "w"], ["y"])]  # fmt: skip
    return Model.from_ir(ir.from_proto(model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": array(4, 4), "v": array(4, 4, seed=1)})))


def pipeline(*, rounds: int = 1) -> Pipeline:
    return Pipeline("test", (Stage((IDENTITY, Count(), NegToRelu()), 2), Stage((DEAD, WEIGHTS, DEAD), rounds)))


HOLDS = [
    Hold(), Hold(applications=frozenset({3})), Hold(applications=frozenset({3, 4})), Hold(applications=frozenset({1})),
    Hold(passes=frozenset({"neg-to-relu"})), Hold(passes=frozenset({"quantize-weights"})), Hold(limit=4), Hold(limit=1), Hold(limit=0),
    Hold(applications=frozenset({4})), Hold(passes=frozenset({"prune-dead-nodes"})),
]  # fmt: skip


@pytest.mark.parametrize("rounds", [1, 2])
def test_replays_are_the_same_as_whole_runs(rounds: int) -> None:
    loaded, checkpoints = source(), Checkpoints()
    for hold in (*HOLDS, *reversed(HOLDS)):
        whole = run_pipeline(loaded.fresh, pipeline(rounds=rounds), hold=hold)
        found = run_pipeline(loaded.fresh, pipeline(rounds=rounds), hold=hold, checkpoints=checkpoints)
        assert digest(found.model.graph) == digest(whole.model.graph)
        assert found.applications == whole.applications
        assert [(r.name, r.applied, r.status, r.nodes_before, r.nodes_after) for r in found.runs] == [
            (r.name, r.applied, r.status, r.nodes_before, r.nodes_after) for r in whole.runs
        ]
        assert found.notes == whole.notes


def test_what_is_alike_is_done_once() -> None:
    loaded, checkpoints = source(), Checkpoints()
    Count.times.clear()
    for hold in (Hold(), Hold(applications=frozenset({3})), Hold(passes=frozenset({"quantize-weights"})), Hold(limit=4)):
        run_pipeline(loaded.fresh, pipeline(), hold=hold, checkpoints=checkpoints)
    assert len(Count.times) == 2  # the rounds of the first run
    run_pipeline(loaded.fresh, pipeline(), hold=Hold(applications=frozenset({0})), checkpoints=checkpoints)
    assert len(Count.times) == 4
    run_pipeline(loaded.fresh, pipeline(rounds=2), checkpoints=checkpoints)
    assert len(Count.times) == 6


def test_candidates_have_graphs_of_their_own() -> None:
    loaded, checkpoints = source(), Checkpoints()
    first, second = (run_pipeline(loaded.fresh, pipeline(), checkpoints=checkpoints) for _ in range(2))
    before = digest(second.model.graph)
    first.model.graph.graph.remove(list(first.model.graph.graph)[-1])
    assert digest(second.model.graph) == before
    assert digest(run_pipeline(loaded.fresh, pipeline(), checkpoints=checkpoints).model.graph) == before


def test_a_pass_that_raises_is_left_out_of_replays_too() -> None:
    abs_ = [node("Abs", ["x"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    loaded = Model.from_ir(ir.from_proto(model(abs_, {"x": [2, 4]}, {"y": [2, 4]}, {"w": array(4, 4)})))
    steps, checkpoints = Pipeline.of("test", (RaiseHalfway(), WEIGHTS)), Checkpoints()
    for _ in range(2):
        found = run_pipeline(loaded.fresh, steps, checkpoints=checkpoints)
        assert [r.status for r in found.runs] == ["failed", "kept"]
        assert [n.op_type for n in found.model.graph.graph] == ["Abs", "DequantizeLinear", "MatMul"]


def test_where_a_pipeline_is_resumed() -> None:
    assert place_of(Pipeline.of("test", (IDENTITY, DEAD))) is None
    assert place_of(Pipeline.of("test", (WEIGHTS,))) is None
    place = place_of(pipeline())
    assert place is not None
    assert (place.stage, place.inner, place.step) == (1, 1, 4)
    assert WEIGHTS.effect is Effect.LOSSY


def test_graphs_that_cannot_be_copied_are_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self, deep_copy: bool = False) -> ir.Model:
        raise RuntimeError("not sorted")

    proto = model([node("Identity", ["x"], ["i"]), node("MatMul", ["i", "w"], ["y"])], {"x": [2, 4]}, {"y": [2, 4]}, {"w": array(4, 4)})
    data = proto.SerializeToString()
    monkeypatch.setattr(ir.Model, "clone", fails)
    found = run_pipeline(
        lambda: Model(ir.from_proto(onnx.ModelProto.FromString(data))), Pipeline.of("test", (IDENTITY, WEIGHTS)), checkpoints=Checkpoints()
    )
    assert [r.applied for r in found.runs] == [1, 1]
    assert np.dtype(np.int8) in [v.const_value.numpy().dtype for v in found.model.graph.graph.initializers.values()]
