"""Loop that is known to run not at all, or once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Pass, Refuse, constant_tensor, scalar_of

from ..arguments import in_function
from .graft import graft
from .inline_constant_if import inline


@dataclass(frozen=True)
class InlineConstantLoop(Pass):
    """Put the body of a Loop that runs exactly once in its place, and what it is given where it never runs."""

    name = "inline-constant-loop"

    def run(self, context: Context) -> None:
        for node in context.index.of_types(("Loop",)):
            if node.graph not in context.index.scopes:
                continue  # it went with the body that it stood in
            if node.domain not in ("", "ai.onnx") or in_function(context, node.outputs[0]):
                continue
            rounds = _rounds(context, node)
            if rounds is None:
                continue
            try:
                (_run_once if rounds else _leave_out)(context, node)
            except Refuse as refusal:
                context.log.refuse(node, refusal.reason)


def _number(context: Context, value: ir.Value | None, missing: int) -> int | None:
    """A number of rounds or a condition, where it is known; `missing` where it is left out."""
    if value is None:
        return missing
    if constant_tensor(value) is not None:
        found = scalar_of(value)
        return None if found is None else int(found)
    known = context.shapes.partial_value(value)
    return known[0] if known is not None and len(known) == 1 and isinstance(known[0], int) else None


def _rounds(context: Context, node: ir.Node) -> int | None:
    """0 or 1 where the Loop is known to run so often; None otherwise."""
    body = node.attributes["body"].as_graph()
    given = list(node.inputs) + [None, None]
    count, goes_on = _number(context, given[0], -1), _number(context, given[1], 1)
    if count == 0 or goes_on == 0:
        return 0
    if goes_on != 1 or count is None or (count < 0 and node.inputs[0] is not None):
        return None
    if count == 1 or _number(context, body.outputs[0], 1) == 0:
        return 1
    return None


def _leave_out(context: Context, node: ir.Node) -> None:
    """The carried values are those that the Loop starts with; what it would have collected is empty."""
    body = node.attributes["body"].as_graph()
    carried = len(node.inputs) - 2
    results = list(node.inputs[2:])
    for value, made in zip(node.outputs[carried:], body.outputs[carried + 1 :]):
        dims, dtype = context.static_dims(made), context.dtype(made)
        if not (value.uses() or value.is_graph_output()):
            results.append(value)
            continue
        if dims is None or dtype is None:
            raise Refuse("it never runs, but the shape of what it would collect is not known")
        results.append(_constant(context, node, np.zeros((0, *dims), dtype.numpy()), f"{value.name}/empty"))
    if any(result is None for result in results):
        raise Refuse("a value that it starts with is left out")
    if context.log.permit(node):
        context.log.settled(node)
        graft(context, node, [], results)


def _run_once(context: Context, node: ir.Node) -> None:
    body = node.attributes["body"].as_graph()
    if any(value is None for value in node.inputs[2:]):
        raise Refuse("a value that it starts with is left out")
    if not context.log.permit(node):
        return
    context.log.settled(node)
    carried = len(node.inputs) - 2
    name = node.name or "Loop"
    first = _constant(context, node, np.asarray(0, np.int64), f"{name}/number")
    given = dict(zip(body.inputs, (first, _constant(context, node, np.asarray(True), f"{name}/condition"), *node.inputs[2:])))
    outputs = [given.get(v, v) for v in body.outputs][1:]
    body.outputs.clear()
    for value, outer in given.items():
        value.replace_all_uses_with(outer)
    collected: list[ir.Node] = []
    for i, value in enumerate(outputs[carried:], start=carried):
        collected.append(_stacked(context, node, value))
        outputs[i] = collected[-1].outputs[0]
    inline(context, node, body, outputs, collected)


def _constant(context: Context, node: ir.Node, array: np.ndarray, hint: str) -> ir.Value:
    name = context.index.fresh_name(hint)
    tensor = ir.Tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    node.graph.initializers.add(value)
    return value


def _stacked(context: Context, node: ir.Node, value: ir.Value) -> ir.Node:
    """What one round collects: the value with an axis before the others."""
    name = context.index.fresh_name(f"{node.name or 'Loop'}/collected")
    if context.opset(node) >= 13:
        axes = _constant(context, node, np.asarray([0]), f"{name}/axes")
        made = ir.Node("", "Unsqueeze", [value, axes], num_outputs=1, name=name)
    else:
        made = ir.Node("", "Unsqueeze", [value], [ir.AttrInt64s("axes", [0])], num_outputs=1, name=name)
    made.outputs[0].name = context.index.fresh_name(name)
    return made
