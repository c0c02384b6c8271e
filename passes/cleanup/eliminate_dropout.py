"""Dropout where the model infers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Editor, Match, Pattern, Refuse, Rewrite, op, scalar_of, var
from graphopt.rewriting.guards import constant, unused_outputs

from ..arguments import integer

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class EliminateDropout(Rewrite):
    """Remove Dropout that is not in training mode and whose mask is not used."""

    name = "eliminate-dropout"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import eliminate_dropout

        eliminate_dropout.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Dropout", var("x"), ...),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node = match.root
        self._inference_only(node, editor.context.opset(node))
        unused_outputs(node)
        editor.replace(node.outputs[0], match["x"])

    def _inference_only(self, node: ir.Node, opset: int) -> None:
        if opset < 7:
            if integer(node, "is_test", 0) != 1:
                raise Refuse("it is in training mode")
        elif opset >= 12 and len(node.inputs) > 2 and node.inputs[2] is not None:
            constant(node.inputs[2], "training_mode")
            if scalar_of(node.inputs[2]) is not False:
                raise Refuse("it is in training mode")
