"""Small graphs and rewrites that the tests of the engine share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from graphopt.rewriting import ChangeLog, Context, Editor, Match, Pattern, Rewrite, op, var
from tests.support import drop_inferred


def load(proto: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))


def rewrite(patterns: Sequence[Pattern], act: Callable[[Match, Editor], None], called: str = "test-rewrite") -> Rewrite:
    """A rewrite made of a function."""

    @dataclass(frozen=True)
    class Made(Rewrite):
        """Made for a test."""

        name: ClassVar[str] = called

        def patterns(self) -> Sequence[Pattern]:
            return patterns

        def rewrite(self, match: Match, editor: Editor) -> None:
            act(match, editor)

    return Made()


def turn(old: str, new: str, **attributes) -> Rewrite:
    """A rewrite of every unary `old` into `new`."""
    return rewrite((op(old, var("x")),), lambda m, e: e.replace(m.root.outputs[0], e.node(new, [m["x"]], attributes, name=m.root.name)))


def run(made: Rewrite, graph: ir.Model, **kwargs) -> ChangeLog:
    log = ChangeLog(made.name, **kwargs)
    made.run(Context(graph, log))
    return log


def kinds(graph: ir.Model | ir.Graph) -> list[str]:
    return [n.op_type for n in (graph.graph if isinstance(graph, ir.Model) else graph)]


def result(graph: ir.Model) -> onnx.ModelProto:
    drop_inferred(graph)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made)
    return made
