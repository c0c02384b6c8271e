"""com.microsoft Attention with constant weights: QAttention on an input that is rounded when it comes."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Refuse, guards

from .dynamic_weights import Dynamic, Plan, by_columns, guard_opset, guard_sum

_ATTRIBUTES = frozenset({"num_heads", "unidirectional", "mask_filter_value", "scale"})


def attention(context: Context, node: ir.Node, dynamic: Dynamic) -> Plan | None:
    """How an Attention is stated as QAttention; None where it is none.

    Raises Refuse as `product` does.
    """
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    tensor = dynamic.guard_weight(node, 1, 2)
    if tensor is None:
        raise Refuse("its weight is not constant")
    guard_opset(context, node)
    guard_sum(int(tensor.shape[0]))
    given = [*node.inputs, *[None] * 7][:7]
    _, _, bias, mask, past, added, length = given
    guards.require(bias is not None, "QAttention must have a bias")
    guards.require(added is None, "QAttention takes nothing that is added to the products")
    guards.require(length is None, "QAttention takes no length of the past")
    other = sorted(name for name in node.attributes if name not in _ATTRIBUTES and guards.attribute(node, name))
    guards.require(not other, f"QAttention has no attribute {other[0] if other else ''}")

    def plan(editor: Editor) -> None:
        x, scale, zero = dynamic.input(editor, node.inputs[0])  # type: ignore[arg-type]
        weight, by = dynamic.weight(editor, node.inputs[1], by_columns)  # type: ignore[arg-type]
        inputs: list[ir.Value | None] = [x, weight, bias, scale, by, mask, zero, None, past]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {name: attribute for name, attribute in node.attributes.items() if name in _ATTRIBUTES}
        made = editor.node("QAttention", inputs, attributes, outputs=len(node.outputs), domain="com.microsoft", name=node.name or None)
        for old, new in zip(node.outputs, [made] if len(node.outputs) == 1 else made):
            new.type, new.shape = old.type, old.shape
            editor.replace(old, new)

    return plan
