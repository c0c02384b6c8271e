"""A negated condition: what depends on it chooses the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, use_count, var

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_MOST = 64


@dataclass(frozen=True)
class EliminateNot(Rewrite):
    """Turn Where(Not(c), a, b) into Where(c, b, a), and swap the branches of an If, where that leaves nothing to negate."""

    name = "eliminate-not"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_idempotent

        eliminate_idempotent.run_not(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op(("Where", "If"), op("Not", var("c"), bind="not"), ...),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, negation = match.root, match["not"].outputs[0]
        if negation.is_graph_output() or use_count(negation) > _MOST:
            return
        if any(usage.node.op_type not in ("Where", "If") or usage.idx != 0 for usage in negation.uses()):
            return  # the Not would stay: then nothing is gained
        if node.op_type == "Where":
            _, a, b = node.inputs
            editor.set_input(node, 1, b)
            editor.set_input(node, 2, a)
        else:
            then_branch, else_branch = node.attributes["then_branch"], node.attributes["else_branch"]
            if then_branch.is_ref() or else_branch.is_ref():
                return
            editor.set_attribute(node, "then_branch", ir.Attr("then_branch", ir.AttributeType.GRAPH, else_branch.as_graph()))
            editor.set_attribute(node, "else_branch", ir.Attr("else_branch", ir.AttributeType.GRAPH, then_branch.as_graph()))
        editor.set_input(node, 0, match["c"])
