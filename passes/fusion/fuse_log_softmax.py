"""LogSoftmax as the logarithm of a Softmax, or spelled out with Exp."""

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
class FuseLogSoftmax(Rewrite):
    """Write log(Softmax(x)), and x - max - log(sum(exp(x - max))) over the last axis, as LogSoftmax.

    Where a probability is too small for its type the first of these answers -inf, and LogSoftmax the finite logarithm.
    """

    name = "fuse-log-softmax"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})
    before_export = False  # ONNX has the same pass

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fuse_softmax

        fuse_softmax.run_log_softmax(context)

    def patterns(self) -> Sequence[Pattern]:
        total = op("ReduceSum", op("Exp", var("power"), bind="exp"), ..., bind="sum")
        return (
            op("Log", op("Softmax", var("x"), bind="softmax"), bind="log"),
            op("Sub", var("power"), op("Log", total, bind="log"), bind="sub"),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, last = editor.context, match.root
        output = last.outputs[0]
        if "softmax" in match:
            guards.same_graph(*match.nodes)
            guards.only_consumer(match["softmax"].outputs[0], "the probability", last)
            x, axis = match["x"], match["softmax"].attributes.get("axis")
        else:
            total, power = match["sum"], match["power"]
            if set(consumers(power)) != {match["exp"], last}:
                return
            found = read_shifted(context, power)
            if reduces_along(context, total, found.axis, found.rank) is None:
                return
            claim(match, found.nodes, last)
            x, axis = found.x, last_axis(found)
        guards.require(element_type(context, x) in TYPES, "it is not known to be of a floating-point type")
        editor.replace(output, editor.node("LogSoftmax", [x], {"axis": axis}, name=last.name, like=output))
