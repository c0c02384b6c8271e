"""What nothing depends on: nodes, initializers, functions, optional outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Context, Pass, is_used, option, remove_unused

from ..arguments import integer

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

# Operators whose outputs from the given number on are optional and decide nothing about the others.
_OPTIONAL = {
    "BatchNormalization": 1, "Dropout": 1, "GRU": 0, "LSTM": 0, "LayerNormalization": 1, "MaxPool": 1, "RNN": 0,
    "SoftmaxCrossEntropyLoss": 1, "Unique": 1,
}


@dataclass(frozen=True)
class PruneDeadNodes(Pass):
    """Remove nodes, initializers, functions and optional outputs that nothing uses."""

    name = "prune-dead-nodes"
    kinds = frozenset({"onnx", "torch"})

    opset_imports: bool = option(False, "also drop the opset imports of domains that no node is of")

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import prune_dead_nodes

        prune_dead_nodes.run(context)

    def run(self, context: Context) -> None:
        _prune_functions(context)  # first: then what they hold need not be looked at
        _prune_nodes(context)
        _prune_outputs(context)
        _prune_initializers(context)
        if self.opset_imports:
            _prune_imports(context)


def _prune_nodes(context: Context) -> None:
    """Operators have no side effects (ONNX IR specification, "Graphs"), so one without consumers is not missed."""
    dead = [n for n in context.nodes() if n.outputs and not any(is_used(v) for v in n.outputs)]
    scopes = context.index.scopes
    for node in dead:
        if node.graph in scopes and context.log.permit(node):  # else it went with the subgraph that it stood in
            remove_unused([node], context)


def _prune_outputs(context: Context) -> None:
    for node in context.index.of_types(tuple(_OPTIONAL)):
        if node.domain != "" or not any(v.name and not is_used(v) for v in node.outputs):
            continue
        if node.op_type == "BatchNormalization" and (context.opset(node) < 14 or integer(node, "training_mode", 0) != 0):
            continue  # before opset 14 the number of outputs says whether it trains; a training kernel writes them all
        first = _OPTIONAL[node.op_type]
        unused = [v for v in node.outputs[first:] if v.name and not is_used(v)]
        if not unused or not context.log.permit(node):
            continue
        count = len(node.outputs)
        while count > max(first, 1) and not is_used(node.outputs[count - 1]):
            count -= 1
        node.resize_outputs(count)
        for value in unused:
            if value.producer() is node:
                value.name = ""  # how the format says that an output is left out
            value.type = value.shape = value.const_value = None
            value.meta.clear()


def _prune_initializers(context: Context) -> None:
    for graph in context.index.scopes:
        unused = [v for v in graph.initializers.values() if not is_used(v) and not v.is_graph_input()]
        for value in unused:
            if context.log.permit(value):
                graph.initializers.pop(value.name)


def _prune_functions(context: Context) -> None:
    functions = context.model.functions
    if not functions:
        return
    calls: dict[ir.Function | None, dict[tuple[str, str, str], None]] = {}
    for graph, scope in context.index.scopes.items():
        called = calls.setdefault(scope.function, {})
        for node in graph:
            identifier = node.op_identifier()
            if identifier in functions:
                called[identifier] = None
    live: dict[tuple[str, str, str], None] = {}
    pending = list(calls.get(None, ()))
    while pending:
        identifier = pending.pop()
        if identifier not in live:
            live[identifier] = None
            pending.extend(calls.get(functions[identifier], ()))
    dead = [identifier for identifier in functions if identifier not in live]
    for identifier in dead:
        if context.log.permit(label="function " + ":".join(part for part in identifier if part)):
            del functions[identifier]
    if dead:
        context.invalidate()


def _prune_imports(context: Context) -> None:
    used = {""}
    for graph, scope in context.index.scopes.items():
        used.update(node.domain for node in graph)
        if scope.function is not None:
            used.add(scope.function.domain)
    imports = context.model.opset_imports
    for domain in [d for d in imports if d not in used and d != "ai.onnx"]:
        if context.log.permit(label=f"opset import {domain}"):
            del imports[domain]
