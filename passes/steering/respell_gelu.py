"""A GELU that is spelled out, in the spelling that the runtime fuses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Rewrite, guards, op, scalar_of

from ..arguments import element_type
from ..fusion.gelu import read
from ..fusion.reading import goes_to, halved


@dataclass(frozen=True)
class RespellGelu(Rewrite):
    """Spell out a GELU, which is an operator from opset 20 on only, as the runtime looks for it.

    ONNX Runtime 1.32 makes one operator of a GELU by Erf where x is divided by sqrt(2), and of one by Tanh where x^3 is a
    Pow; x times sqrt(1/2), x x x, or half of the curve alone it runs node by node, and a factor of 1/2 at the end it takes
    into the next MatMul, whose weight it then does not pack. Measured on x86-64 with AVX-512, one thread, sequence of 128:
    GPT-2 of torch's older exporter 1.05 times as fast.
    """

    name = "respell-gelu"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return (op(("Erf", "Tanh")),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, root = editor.context, match.root
        if context.opset(root) >= 20:
            return  # an operator then
        found = read(context, match)
        if found is None:
            return
        x, last = found
        if (_erf_is_found if root.op_type == "Erf" else _tanh_is_found)(context, match, x):
            return
        guards.require(element_type(context, x) == ir.DataType.FLOAT, "it is not known to be of float32")
        state = _Stating(editor, x, last)
        if root.op_type == "Erf":
            curve = state("Erf", state("Div", x, math.sqrt(2.0)))
        else:
            cubic = state("Add", x, state("Mul", state("Pow", x, 3.0), 0.044715))
            curve = state("Tanh", state("Mul", cubic, math.sqrt(2.0 / math.pi)))
        result = state("Mul", state("Mul", x, 0.5), state("Add", curve, 1.0), like=last.outputs[0])
        editor.replace(last.outputs[0], result)


@dataclass(frozen=True)
class _Stating:
    editor: Editor
    x: ir.Value
    last: ir.Node

    def __call__(self, op_type: str, *operands: ir.Value | float, like: ir.Value | None = None) -> ir.Value:
        """State a node over values and numbers, which become constants of float32."""
        name = self.last.name or "Gelu"
        inputs = [self.editor.constant(np.float32(v), f"{name}/constant") if isinstance(v, float) else v for v in operands]
        return self.editor.node(op_type, inputs, name=f"{name}/{op_type}" if like is None else self.last.name, like=like or self.x)


def _erf_is_found(context: Context, match: Match, x: ir.Value) -> bool:
    """Whether the runtime fuses it as it stands: x is divided, by sqrt(2) alone, and is a factor of the curve or half of it."""
    divisions = [n for n in match.nodes if n.op_type == "Div"]
    return divisions == [match.root.inputs[0].producer()] and not _halves_the_curve(context, match)


def _tanh_is_found(context: Context, match: Match, x: ir.Value) -> bool:
    """Whether the runtime fuses it as it stands: with a cube made by Pow, and half of x times the curve."""
    counts = Counter(n.op_type for n in match.nodes)
    cubes = [n for n in match.nodes if n.op_type == "Pow" and scalar_of(n.inputs[1]) == 3]
    half = any(n.op_type == "Mul" and x in n.inputs and any(scalar_of(v) == 0.5 for v in n.inputs) for n in match.nodes)
    return bool(cubes) and half and counts == Counter(Pow=1, Mul=4, Add=2, Tanh=1) and not _halves_the_curve(context, match)


def _halves_the_curve(context: Context, match: Match) -> bool:
    plus = goes_to(match.root.outputs[0], "Add")
    first = goes_to(plus.outputs[0], "Mul", "Div") if plus is not None else None
    return first is None or halved(context, first, plus.outputs[0])  # type: ignore[union-attr]
