"""RMSNormalization spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Effect, Match, Pattern, Refuse, Rewrite

from .normalization import parameter, read_last_axes, root_patterns, state


@dataclass(frozen=True)
class FuseRmsNormalization(Rewrite):
    """Write x / sqrt(mean(x^2) + epsilon) * scale over the last axes as RMSNormalization (opset 23).

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization". The scale may be missing. The operator computes in
    float32 whatever the type of x, so float16 gets more precise and float64 is left alone.
    """

    name = "fuse-rms-normalization"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return root_patterns()

    def rewrite(self, match: Match, editor: Editor) -> None:
        context = editor.context
        found = read_last_axes(context, match, centred=False)
        if found is None:
            return
        rank = len(found.dims)
        scale = parameter(editor, found.scale, found.sizes(context), axes=found.axes, rank=rank, what="scale", default=1.0)
        if scale is None:
            raise Refuse("its scale is not shaped as the normalized axes are")
        state(editor, found, "RMSNormalization", 23, [found.x, scale], {"axis": found.axes[0] - rank})
