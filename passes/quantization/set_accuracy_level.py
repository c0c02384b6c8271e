"""Products of weights in blocks on 8-bit integers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Effect, Pass, Refuse, guards, option

_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class SetAccuracyLevel(Pass):
    """Let MatMulNBits round what it reads to 8-bit integers, block by block, and multiply integers.

    Its attribute accuracy_level says how exact the products must be; 4 allows int8. For one row of inputs that is several
    times as fast as float products, for many it can be slower; it is measured. Nodes that say something are left alone.
    """

    name = "set-accuracy-level"
    effect = Effect.LOSSY
    providers = frozenset({"cpu"})
    measured = True

    level: int = option(4, "1: float32, 4: int8", choices=(1, 4))

    def run(self, context: Context) -> None:
        """One application for all: how many nodes there are depends on what is held back of other passes."""
        found = []
        for node in context.index.of_types(("MatMulNBits",)):
            if node.domain != _DOMAIN:
                continue
            try:
                if not guards.attribute(node, "accuracy_level", 0):
                    found.append(node)
            except Refuse as refusal:
                context.log.refuse(node, refusal.reason)
        if found and context.log.permit(None, f"accuracy level {self.level}"):
            for node in found:
                node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", self.level)
