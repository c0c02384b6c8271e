"""Measuring by a table of speeds, where a clock would make a test depend on the machine."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt.measurement import FinalGraph, Speed
from graphopt.model import Model
from graphopt.pipeline.runner import Application, Candidate, Hold, PassRun
from graphopt.settings import Settings
from tests.support import model, node


def speed(ratio: float, spread: float = 0.004) -> Speed:
    return Speed(ratio, ratio - spread, ratio + spread, 1.0, 1.0 / ratio, 40, 0.95, 1.0, 1.0, 1, "cpu")


class Passes:
    """Candidates of which only the passes that were applied matter.

    cost: milliseconds by the passes applied (a sorted tuple); nodes: likewise, how many nodes; alike: passes that make
    no difference to the runtime's final graph. operators: what that graph has. small: the cost on small inputs, if there are such.
    """

    def __init__(
        self, names: list[str], cost, nodes=lambda applied: 4, alike: tuple[str, ...] = (), operators=lambda applied: {},
        original: float = 10.0, small=None,
    ) -> None:  # fmt: skip
        self.small = small
        self.names, self.cost, self.nodes, self.alike, self.original = names, cost, nodes, alike, original
        self.operators = operators
        self.raced: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self.told: list[str] = []

    def build(self, hold: Hold | None = None) -> Candidate:
        hold = hold or Hold()
        applied = [n for n in self.names if n not in hold.passes]
        chain = [node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(self.nodes(tuple(applied)))]
        graph = ir.from_proto(onnx.ModelProto.FromString(_chain(chain)))
        runs = [PassRun(n, "exact", applied=n in applied) for n in self.names]
        return Candidate(Model.from_ir(graph), runs, [Application(i, n, "x") for i, n in enumerate(applied)], hold, [])

    def graph_of(self, candidate: Candidate) -> FinalGraph:
        applied = _applied(candidate)
        return FinalGraph(repr([n for n in applied if n not in self.alike]).encode(), self.operators(applied))

    def race(self, a: Candidate, b: Candidate, seconds: float, decide: float | None = None, *, small: bool = False) -> Speed:
        self.raced.append((_applied(a), _applied(b)))
        cost = self.small if small else self.cost
        return speed(cost(_applied(a)) / cost(_applied(b)))

    def speed_of(self, candidate: Candidate, seconds: float, *, small: bool = False) -> Speed:
        return speed(self.original / (self.small if small else self.cost)(_applied(candidate)))

    def shapes(self, *, small: bool = False):
        return ({"x": [1, 16]} if self.small else None) if small else {"x": [1, 128]}

    def tell(self, text: str) -> None:
        self.told.append(text)


def _applied(candidate: Candidate) -> tuple[str, ...]:
    return tuple(a.pass_name for a in candidate.applications)


def _chain(nodes) -> bytes:
    return model(nodes, {"v0": [2]}, [f"v{len(nodes)}"]).SerializeToString()


class SessionTable:
    """Sessions on one file: milliseconds by settings; optimizers that change the graph, and those that change it alike."""

    def __init__(self, cost, optimizers: tuple[str, ...] = (), graph=None) -> None:
        self.cost, self.active = cost, optimizers
        self.graph = graph or (lambda s: (s.level, frozenset(s.disabled)))
        self.raced: list[tuple[Settings, Settings]] = []
        self.told: list[str] = []

    def race_settings(self, path: Path, a: Settings, b: Settings, seconds: float, decide: float | None = None) -> Speed:
        self.raced.append((a, b))
        return speed(self.cost(a) / self.cost(b))

    def graph_with(self, path: Path, settings: Settings | None) -> FinalGraph:
        return FinalGraph(repr(self.graph(settings)).encode())

    def optimizers(self, path: Path) -> tuple[str, ...]:
        return self.active

    def tell(self, text: str) -> None:
        self.told.append(text)
