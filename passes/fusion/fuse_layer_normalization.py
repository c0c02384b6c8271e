"""LayerNormalization spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Effect, Match, Pattern, Refuse, Rewrite

from .normalization import element, parameter, read, root_patterns
from .reading import claim, needs_opset


@dataclass(frozen=True)
class FuseLayerNormalization(Rewrite):
    """Write (x - mean) / sqrt(variance + epsilon) * scale + bias over the last axes as LayerNormalization (opset 17).

    Ba, Kiros and Hinton 2016, "Layer Normalization". Scale and bias may be missing. The operator computes in float32
    whatever the type of x, so float16 gets more precise and float64 is left alone.
    """

    name = "fuse-layer-normalization"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return root_patterns()

    def rewrite(self, match: Match, editor: Editor) -> None:
        context = editor.context
        found = read(context, match, centred=True)
        if found is None:
            return
        rank = len(found.dims)
        if found.axes != tuple(range(found.axes[0], rank)):
            return
        element(context, found)
        shaped = {"axes": found.axes, "rank": rank}
        dims = found.sizes(context)
        scale = parameter(editor, found.scale, dims, what="scale", default=1.0, **shaped)
        bias = parameter(editor, found.bias, dims, what="bias", default=0.0, **shaped) if found.bias is not None else None
        if scale is None or (bias is None and found.bias is not None):
            if rank > 2 and found.axes == tuple(range(2, rank)):
                return  # one value a channel: an InstanceNormalization
            raise Refuse("its scale or bias is not shaped as the normalized axes are")
        claim(match, found.nodes, found.last)
        needs_opset(context, found.last, "LayerNormalization", 17)
        inputs = [found.x, scale] if bias is None else [found.x, scale, bias]
        attributes = {"axis": found.axes[0] - rank, "epsilon": found.epsilon}
        output = found.last.outputs[0]
        editor.replace(output, editor.node("LayerNormalization", inputs, attributes, name=found.last.name, like=output))
