"""InstanceNormalization spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Editor, Effect, Match, Pattern, Refuse, Rewrite, guards

from .normalization import element, parameter, read, root_patterns, state

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class FuseInstanceNormalization(Rewrite):
    """Write a normalization of each channel over its spatial axes as InstanceNormalization.

    Ulyanov, Vedaldi and Lempitsky 2016, "Instance Normalization: The Missing Ingredient for Fast Stylization".
    """

    name = "fuse-instance-normalization"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})
    before_export = False  # ONNX has the same pass

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fuse_instance_normalization

        fuse_instance_normalization.run(context)

    def patterns(self) -> Sequence[Pattern]:
        return root_patterns()

    def rewrite(self, match: Match, editor: Editor) -> None:
        context = editor.context
        found = read(context, match, centred=True)
        if found is None:
            return
        rank = len(found.dims)
        if rank < 3 or found.axes != tuple(range(2, rank)):
            return
        element(context, found)
        channels = found.dims[1]
        guards.require(isinstance(channels, int), "the number of channels is not known")
        shaped = {"axes": (1,), "rank": rank}
        scale = parameter(editor, found.scale, (channels,), what="scale", default=1.0, **shaped)
        bias = parameter(editor, found.bias, (channels,), what="bias", default=0.0, **shaped)
        if scale is None or bias is None:
            raise Refuse("its scale or bias is not one value a channel")
        state(editor, found, "InstanceNormalization", 6, [found.x, scale, bias], {})
