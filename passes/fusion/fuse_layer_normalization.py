"""LayerNormalization spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Editor, Effect, Match, Pattern, Refuse, Rewrite

from .normalization import parameter, read_last_axes, root_patterns, state

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class FuseLayerNormalization(Rewrite):
    """Write (x - mean) / sqrt(variance + epsilon) * scale + bias over the last axes as LayerNormalization (opset 17).

    Ba, Kiros and Hinton 2016, "Layer Normalization". Scale and bias may be missing. The operator computes in float32
    whatever the type of x, so float16 gets more precise and float64 is left alone.
    """

    name = "fuse-layer-normalization"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fuse_layer_normalization

        fuse_layer_normalization.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return root_patterns()

    def rewrite(self, match: Match, editor: Editor) -> None:
        context = editor.context
        found = read_last_axes(context, match, centred=True)
        if found is None:
            return
        rank, dims = len(found.dims), found.sizes(context)
        shaped = {"axes": found.axes, "rank": rank}
        scale = parameter(editor, found.scale, dims, what="scale", default=1.0, **shaped)
        bias = parameter(editor, found.bias, dims, what="bias", default=0.0, **shaped) if found.bias is not None else None
        if scale is None or (bias is None and found.bias is not None):
            if rank > 2 and found.axes == tuple(range(2, rank)):
                return  # one value a channel: an InstanceNormalization
            raise Refuse("its scale or bias is not shaped as the normalized axes are")
        inputs = [found.x, scale] if bias is None else [found.x, scale, bias]
        state(editor, found, "LayerNormalization", 17, inputs, {"axis": found.axes[0] - rank})
