"""LSTM: the runtime's operator that rounds its input once a run and its state at every step."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Refuse, guards

from .dynamic_weights import Dynamic, Plan, by_directions, guard_opset, guard_sum

_INPUTS = 8  # X, W, R, B, sequence lengths, initial h, initial c, peepholes
_ATTRIBUTES = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")


def lstm(context: Context, node: ir.Node, dynamic: Dynamic) -> Plan | None:
    """How an LSTM is stated as DynamicQuantizeLSTM; None where it is none.

    Raises Refuse as `product` does.
    """
    if len(node.inputs) < 3 or any(node.inputs[i] is None for i in (1, 2)):
        return None
    recurrent = dynamic.guard_weight(node, 2, 3, "the recurrent weight")
    given = dynamic.guard_weight(node, 1, 3, least=1)  # what decides on the size is the recurrent weight
    if recurrent is None or given is None:
        raise Refuse("its weights are not constant")
    guard_opset(context, node)
    guards.require(guards.attribute(node, "layout", 0) == 0, "its batch comes first (layout 1)")
    guard_sum(int(given.shape[2]))
    guard_sum(int(recurrent.shape[2]))

    def plan(editor: Editor) -> None:
        inputs = [*node.inputs, *[None] * (_INPUTS - len(node.inputs))][:_INPUTS]
        tail: list[ir.Value] = []
        zero = np.zeros(tuple(given.shape.numpy())[: 2 if dynamic.by_channel else 1], np.int8)
        for place in (1, 2):
            value = node.inputs[place]
            assert value is not None
            inputs[place], scales = dynamic.weight(editor, value, by_directions)
            tail += [scales, editor.constant(zero, f"{value.name}_zero_point")]
        attributes = {name: node.attributes[name] for name in _ATTRIBUTES if name in node.attributes}
        made = editor.node(
            "DynamicQuantizeLSTM", [*inputs, *tail], attributes, outputs=len(node.outputs), domain="com.microsoft", name=node.name or None
        )
        made = [made] if len(node.outputs) == 1 else made
        for old, new in zip(node.outputs, made):
            new.type, new.shape = old.type, old.shape
            editor.replace(old, new)

    return plan
