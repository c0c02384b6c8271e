"""A Pad before a Conv that is slower with padding of its own, written so that the runtime keeps the two apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Match, Pattern, Refuse, Rewrite, guards, op, use_count, var

from ..algebra.fold_pad import guard_speed, guard_value, padding, spatial_axes


@dataclass(frozen=True)
class KeepPadBeforeConv(Rewrite):
    """Leave out the zero of a Pad before a Conv that is slower with padding of its own, so that the runtime does not fuse them.

    ONNX Runtime 1.32 folds a Pad with zeros, given or by default, into the Conv behind it; not one whose value is an empty
    input, which means zero too. Measured on x86-64 with AVX-512, one thread: a kernel of 64x1 over a column of 128 4.2
    times as fast, 15x1 over 64 1.7, 1x31 over 64 1.5, 7x7 over 28x28 1.3, depthwise 13x13 1.3, 31 in one dimension 1.0.
    What is slower with padding of its own is what fold-pad refuses.
    """

    name = "keep-pad-before-conv"
    providers = frozenset({"cpu"})

    def patterns(self) -> Sequence[Pattern]:
        return (op("Conv", op("Pad", var("x"), ..., bind="pad"), ...),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, conv, pad, x = editor.context, match.root, match["pad"], match["x"]
        output = pad.outputs[0]
        if len(pad.inputs) > 2 and (pad.inputs[2] is None or len(pad.inputs) > 3):
            return  # the runtime leaves it alone already
        if context.opset(pad) < 11 or use_count(output) != 1 or output.is_graph_output() or pad.graph is not conv.graph:
            return
        try:
            guards.require(guards.attribute(pad, "mode", "constant") == "constant", "")
            guards.require(guards.attribute(conv, "auto_pad", "NOTSET") in ("NOTSET", "VALID"), "")
            begins, ends = padding(pad, spatial_axes(conv, context), context)
            guard_value(pad, conv, x)
        except Refuse:
            return  # the runtime does not fold it
        own = guards.attribute(conv, "pads", ()) or (0,) * (2 * len(begins))
        try:
            guard_speed(conv, [p + q for p, q in zip(own, (*begins, *ends))], context)
        except Refuse:
            new = editor.node("Pad", [x, pad.inputs[1], None], dict(pad.attributes), name=pad.name or None, like=output)
            editor.replace(output, new)
