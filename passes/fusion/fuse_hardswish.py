"""HardSwish spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Rewrite, op

from .hard import divides_by, is_relu6_line, is_sixth, read_clipped, supported
from .reading import claim, goes_to, made_by, operand

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_SINCE = 14


@dataclass(frozen=True)
class FuseHardswish(Rewrite):
    """Write x * clip(x + 3, 0, 6) / 6 and x * HardSigmoid(x) as HardSwish (before opset 14: as x * HardSigmoid(x)).

    Howard et al. 2019, "Searching for MobileNetV3", section 5.2.
    """

    name = "fuse-hardswish"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})
    before_export = False  # ONNX has the same pass

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import hard

        hard.run_hardswish(context)

    def patterns(self) -> Sequence[Pattern]:
        return op("HardSigmoid", bind="gate"), op("Clip", op("Add"), ..., bind="clip")

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, node = editor.context, match.root
        has_operator = context.opset(node) >= _SINCE
        if "gate" in match:
            last = goes_to(node.outputs[0], "Mul")
            x, nodes = node.inputs[0], [node]
            if last is None or operand(last, node.outputs[0]) is not x or not has_operator or not is_sixth(node):
                return
        else:
            found = read_clipped(context, node)
            if found is None or not is_relu6_line(*found):
                return
            line, _ = found
            x = line.x
            tail = _product_by_sixth(context, node, x)
            if tail is None:
                return
            last, nodes = tail[-1], [*line.nodes, node, *tail]
        claim(match, [*nodes, last], last)
        supported(context, x)
        output = last.outputs[0]
        if has_operator:
            new = editor.node("HardSwish", [x], name=last.name, like=output)
        else:
            gate = editor.node("HardSigmoid", [x], {"alpha": float(np.float32(1 / 6)), "beta": 0.5}, name=node.name)
            new = editor.node("Mul", [x, gate], name=last.name, like=output)
        editor.replace(output, new)


def _product_by_sixth(context: Context, clip: ir.Node, x: ir.Value) -> list[ir.Node] | None:
    """The nodes behind a Clip that multiply it by x / 6, in any order."""
    value = clip.outputs[0]
    first = goes_to(value, "Mul", "Div")
    if first is None:
        return None
    if divides_by(context, first, value, 6.0):
        second = goes_to(first.outputs[0], "Mul")
        return [first, second] if second is not None and operand(second, first.outputs[0]) is x else None
    if first.op_type != "Mul":
        return None
    if operand(first, value) is x:
        second = goes_to(first.outputs[0], "Mul", "Div")
        return [first, second] if divides_by(context, second, first.outputs[0], 6.0) else None
    sixth = made_by(operand(first, value), "Mul", "Div")
    return [sixth, first] if divides_by(context, sixth, x, 6.0) else None
