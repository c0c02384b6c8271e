"""Passes that do wrong on purpose, for tests of what the pipeline makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.rewriting import Context, Editor, Effect, Match, Pass, Pattern, Rewrite, op, option, var


@dataclass(frozen=True)
class NegToRelu(Rewrite):
    """Replace the Neg nodes whose name starts with "bad" by Relu, which is wrong, and the others by Mul by -1."""

    name = "neg-to-relu"

    def patterns(self) -> Sequence[Pattern]:
        return (op("Neg", var("x")),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        root = match.root
        if (root.name or "").startswith("bad"):
            editor.replace(root.outputs[0], editor.node("Relu", [match["x"]], like=root.outputs[0]))
        else:
            minus = editor.constant(np.asarray(-1, np.float32), f"{root.name}/minus_one")
            editor.replace(root.outputs[0], editor.node("Mul", [match["x"], minus], like=root.outputs[0]))


@dataclass(frozen=True)
class RaiseHalfway(Pass):
    """Remove the consumers of the first Abs and then raise."""

    name = "raise-halfway"

    def run(self, context: Context) -> None:
        for node in context.index.of_types(("Abs",)):
            if context.log.permit(node):
                node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
                raise ValueError("half of the work\nis done")


@dataclass(frozen=True)
class SlowDown(Rewrite):
    """Put many needless exact operations behind every Sigmoid."""

    name = "slow-down"
    effect = Effect.EXACT
    count: int = option(40, "how many Abs nodes", minimum=1, maximum=400)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Sigmoid", var("x"), where=lambda n: "slowed" not in n.metadata_props),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        root = match.root
        value = editor.node("Sigmoid", [match["x"]], like=root.outputs[0])
        value.producer().metadata_props["slowed"] = "yes"
        for _ in range(self.count):
            value = editor.node("Abs", [value], like=root.outputs[0])
        editor.replace(root.outputs[0], value)
