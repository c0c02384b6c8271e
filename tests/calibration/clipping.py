"""A pass that calibrates, for tests of how passes come by their statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt import Context, Editor, Effect, Match, Pass, option


@dataclass(frozen=True)
class ClipToSeen(Pass):
    """Replace each Relu by a Clip to the greatest value that was seen."""

    name = "clip-to-seen"
    effect = Effect.LOSSY
    calibrates = True

    share: float = option(1.0, "of the greatest value", minimum=0.0)

    def run(self, context: Context) -> None:
        nodes = context.index.of_types(("Relu",))
        seen = context.calibrate([node.outputs[0] for node in nodes], method="min-max")
        for node in nodes:
            if not context.log.permit(node):
                continue
            editor = Editor(context, Match(node, [node]))
            limits = [editor.constant(np.asarray(v, np.float32), "limit") for v in (0, seen[node.outputs[0]].high * self.share)]
            editor.replace(node.outputs[0], editor.node("Clip", [node.inputs[0], *limits], like=node.outputs[0]))
            editor.commit()
