"""If of which one branch alone lets the model run: the other would hand a value to an operator that cannot take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Pass, attribute_graphs, is_used

from ..arguments import in_function
from .inline_constant_if import inline, taken

_FAR = 64  # nodes looked at behind one If
# The rank that inputs of an operator must have, by their number.
_RNN = {0: 3, 1: 3, 2: 3, 3: 2, 5: 3}
_RANKS = {"GRU": _RNN, "LSTM": {**_RNN, 6: 3}, "RNN": _RNN, "Gemm": {0: 2, 1: 2}}


@dataclass(frozen=True)
class InlineForcedIf(Pass):
    """Put one branch in the place of an If where the other leads to a value of a rank that a later operator cannot take.

    Exporters write a squeeze of a dimension that they do not know as an If, and ask for the rank of its result later on:
    an LSTM behind all that settles the answer for every input on which the model runs at all.
    """

    name = "inline-forced-if"

    def run(self, context: Context) -> None:
        forced = [(node, branch) for node in context.index.of_types(("If",)) if (branch := _forced(context, node)) is not None]
        for node, branch in forced:
            if node.graph is not None and context.log.permit(node):
                inline(context, node, branch)


def _forced(context: Context, node: ir.Node) -> ir.Graph | None:
    """The one branch of an If that can be taken, where ranks say so; None: either, or the condition is known."""
    if node.graph is None or node.domain not in ("", "ai.onnx") or in_function(context, node.inputs[0]) or taken(context, node) is not None:
        return None
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    ranks = [[context.rank(value) for value in branch.outputs] for branch in branches]
    if ranks[0] == ranks[1] or any(rank is None for of_branch in ranks for rank in of_branch):
        return None
    possible = [branch for branch in branches if not _Trial(context).fails(node, branch)]
    return possible[0] if len(possible) == 1 else None


class _Trial:
    """What would follow if one branch were taken; what was inferred meanwhile is taken back."""

    def __init__(self, context: Context) -> None:
        self._context, self._shapes = context, context.shapes
        self._before: dict[ir.Value, tuple[object, ...]] = {}

    def fails(self, node: ir.Node, branch: ir.Graph) -> bool:
        """Whether an operator that runs whenever `node` does would be handed a value of a rank that it cannot take."""
        try:
            for value, result in zip(node.outputs, branch.outputs):
                self._save(value)
                value.shape = result.shape
            return any(self._step(later) for later in _following(self._context, node))
        finally:
            for value, state in self._before.items():
                self._shapes.restore(value, state)

    def _step(self, node: ir.Node) -> bool:
        """Infer the outputs of a node; whether it would fail."""
        for index, rank in _RANKS.get(node.op_type, {}).items():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and value.shape is not None and value.shape.rank() != rank and node.domain in ("", "ai.onnx"):
                return True
        self._infer(node)
        return False

    def _infer(self, node: ir.Node) -> None:
        for attribute in node.attributes.values():
            for graph in attribute_graphs(attribute):
                for inner in graph:
                    self._infer(inner)
        for value in node.outputs:
            self._save(value)
        self._shapes.infer(node)

    def _save(self, value: ir.Value) -> None:
        if value not in self._before:
            self._before[value] = self._shapes.state(value)


def _following(context: Context, node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of the same graph that depend on `node`, each after those that it depends on; at most a few."""
    found: dict[ir.Node, set[ir.Node]] = {}  # and on which of them each depends
    pending = [node]
    for at in pending:  # grows as it is walked
        for usage in (u for value in at.outputs for u in value.uses()):
            user: ir.Node | None = usage.node
            while user is not None and user.graph is not node.graph:
                user = context.index.scopes[user.graph].owner  # it captures the value: what holds it is what depends on it
            if user is None:
                continue
            if user not in found:
                found[user] = set()
                pending.append(user)
            found[user].add(at)
        if len(found) > _FAR:
            break
    done = {node}
    while found:
        ready = next((n for n, needs in found.items() if needs <= done), None)
        if ready is None:
            return
        del found[ready]
        done.add(ready)
        if any(is_used(v) for v in ready.outputs):
            yield ready
