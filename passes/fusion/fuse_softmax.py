"""Softmax spelled out with Exp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, guards, op, var

from ..arguments import element_type
from .reading import claim, consumers
from .shifted import TYPES, last_axis, read_shifted, reduces_along

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class FuseSoftmax(Rewrite):
    """Write exp(x - max) / sum(exp(x - max)) over the last axis as Softmax.

    Without the maximum taken off, exp overflows where Softmax does not, so that is left alone.
    """

    name = "fuse-softmax"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})
    before_export = False  # ONNX has the same pass

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fuse_softmax

        fuse_softmax.run_softmax(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Div", op("Exp", var("power"), bind="exp"), op("ReduceSum", op("Exp"), ..., bind="sum"), bind="div"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, exp, total, div = editor.context, match["exp"], match["sum"], match["div"]
        if total.inputs[0] is not exp.outputs[0] or set(consumers(exp.outputs[0])) != {total, div}:
            return
        found = read_shifted(context, match["power"])
        axis = reduces_along(context, total, found.axis, found.rank)
        if axis is None:
            return
        claim(match, [*found.nodes, total, exp], div)
        guards.require(element_type(context, found.x) in TYPES, "it is not known to be of a floating-point type")
        output = div.outputs[0]
        axis = last_axis(found)
        editor.replace(output, editor.node("Softmax", [found.x], {"axis": axis}, name=div.name, like=output))
