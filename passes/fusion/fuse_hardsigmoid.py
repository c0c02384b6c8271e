"""HardSigmoid spelled out with Clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, op

from .hard import divides_by, read_clipped, supported
from .reading import claim, goes_to, needs_opset

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class FuseHardsigmoid(Rewrite):
    """Write clip(x + 3, 0, 6) / 6, clip(a x + b, 0, 1) and the like as HardSigmoid."""

    name = "fuse-hardsigmoid"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})
    before_export = False  # ONNX has the same pass

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import hard

        hard.run_hardsigmoid(context)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Clip", op("Add"), ..., bind="clip"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, clip = editor.context, match["clip"]
        found = read_clipped(context, clip)
        if found is None:
            return
        line, top = found
        last = clip
        if top != 1:
            last = goes_to(clip.outputs[0], "Div", "Mul")
            if not divides_by(context, last, clip.outputs[0], top):
                return
        claim(match, [*line.nodes, clip, last], last)
        needs_opset(context, clip, "HardSigmoid", 6)
        supported(context, line.x)
        attributes = {"alpha": float(np.float32(line.slope / top)), "beta": float(np.float32(line.offset / top))}
        output = last.outputs[0]
        editor.replace(output, editor.node("HardSigmoid", [line.x], attributes, name=last.name, like=output))
