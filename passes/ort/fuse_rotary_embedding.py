"""Rotary position embedding that is spelled out is RotaryEmbedding of com.microsoft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, guards, op, var

from ..attention.heads import SWAP_HEADS, value_heads
from ..attention.rotary import Rotary, Table, recognize_rotary
from .contrib import DOMAIN


@dataclass(frozen=True)
class FuseRotaryEmbedding(Rewrite):
    """Fuse a rotary position embedding of positions 0, 1, 2, ... into RotaryEmbedding (com.microsoft).

    Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021. Where the heads were split before, it
    comes before the split: the attention behind it takes heads side by side. Measured under ONNX Runtime 1.32 on x86-64 with
    AVX-512, one thread, with `fuse-group-query-attention`: a small Llama 1.10 / 1.14 / 1.29 times as fast for 16 / 64 / 128
    tokens as what the default preset makes of it.
    """

    name = "fuse-rotary-embedding"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return (op("Add", op("Mul", var("a"), var("b")), op("Mul", var("c"), var("d"))),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context = editor.context
        if context.scope(match.root).function is not None:
            return
        rotary = recognize_rotary(context, match.root)
        if rotary is None:
            return
        guards.require(context.dtype(rotary.x) == ir.DataType.FLOAT, "it is not known to be of float32")
        match.nodes.extend(n for n in rotary.nodes if n not in match.nodes)
        guards.same_graph(*match.nodes)
        _state(editor, rotary, match.root.outputs[0])


def _state(editor: Editor, rotary: Rotary, old: ir.Value) -> None:
    first = editor.constant([0], "position")
    cos, sin = (_state_table(editor, table, what) for table, what in ((rotary.cos, "cos"), (rotary.sin, "sin")))
    heads = value_heads(editor.context, rotary.x)
    packed = heads.packed(editor.context) if heads.factor == 1.0 and heads.repeated == 1 else None
    if packed is None or packed.parts > 1:
        editor.replace(old, editor.node("RotaryEmbedding", [rotary.x, first, cos, sin], domain=DOMAIN, like=old))
        return
    attributes = {"num_heads": heads.groups}
    turned = editor.node("RotaryEmbedding", [packed.value, first, cos, sin], attributes, domain=DOMAIN, like=packed.value)
    split = editor.node("Reshape", [turned, editor.constant([0, 0, heads.groups, heads.size], "by_heads_shape")])
    editor.replace(old, editor.node("Transpose", [split], {"perm": SWAP_HEADS}, like=old))


def _state_table(editor: Editor, table: Table, what: str) -> ir.Value:
    """State cosines or sines as [positions, H/2]."""
    if table.array is not None:
        return editor.constant(table.array, f"{what}_by_position")
    size = editor.context.dims(table.angles)[-1]  # type: ignore[index]
    angles = editor.node("Reshape", [table.angles, editor.constant([-1, size], "angles_shape")])
    return editor.node(table.function, [angles])
