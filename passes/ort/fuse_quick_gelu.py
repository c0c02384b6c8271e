"""x sigmoid(alpha x), the sigmoid approximation of GELU; with an alpha of 1, SiLU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Refuse, Rewrite, guards, op, var

from ..fusion.reading import beside, equals, goes_to, made_by, number, operand
from .contrib import require_type, state


@dataclass(frozen=True)
class FuseQuickGelu(Rewrite):
    """Write x sigmoid(alpha x), x / (1 + exp(-x)) and Swish as QuickGelu.

    Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2; with an alpha of 1 it is SiLU. ONNX Runtime
    1.32 finds the spelling with Sigmoid itself; the one with Exp it does not, and Swish it takes apart.
    """

    name = "fuse-quick-gelu"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        denominator = op("Add", bind="sum")
        return (
            op("Mul", var("x"), op("Sigmoid", var("argument"), bind="sigmoid"), commutative=True),
            op("Div", var("x"), denominator),
            op("Swish", var("x")),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, root, x = editor.context, match.root, match["x"]
        alpha: float | None
        if root.op_type == "Swish":
            alpha = float(guards.attribute(root, "alpha", 1.0))
        elif root.op_type == "Div":
            alpha = _of_exponential(context, match)
        else:
            alpha = _of_sigmoid(context, match)
        if alpha is None:
            return
        guards.same_graph(*match.nodes)
        for inner in match.nodes[1:]:
            users = [n for n in match.nodes if n is not inner and inner.outputs[0] in n.inputs]
            guards.only_consumer(inner.outputs[0], f"the result of {inner.op_type}", users[0])
        require_type(context, x)
        state(editor, "QuickGelu", [x], {"alpha": alpha}, of=root)


def _of_sigmoid(context: Context, match: Match) -> float | None:
    """alpha of x sigmoid(alpha x), or None."""
    x, argument = match["x"], match["argument"]
    if x is match["sigmoid"].outputs[0]:
        return None
    if argument is x:
        return 1.0
    scaled = made_by(argument, "Mul")
    if scaled is None or operand(scaled, x) is None or number(operand(scaled, x)) is None:
        return None
    if beside(context, scaled, x) is None:
        raise Refuse("the factor before the sigmoid adds dimensions")
    match.nodes.append(scaled)
    return number(operand(scaled, x))


def _of_exponential(context: Context, match: Match) -> float | None:
    """alpha of x / (1 + exp(-alpha x)), or None."""
    x, total = match["x"], match["sum"]
    exponential = next((n for v in total.inputs if (n := made_by(v, "Exp")) is not None), None)
    if exponential is None or goes_to(exponential.outputs[0], "Add") is not total:
        return None
    one = beside(context, total, exponential.outputs[0])
    negative: ir.Value = exponential.inputs[0]  # type: ignore[assignment]
    inner = made_by(negative, "Neg", "Mul")
    if one is None or not equals(one, 1.0) or inner is None:
        return None
    alpha = 1.0
    if inner.op_type == "Mul":
        factor = beside(context, inner, x)
        if factor is None:
            return None
        alpha = -number(factor)  # type: ignore[operator]
    elif inner.inputs[0] is not x:
        return None
    match.nodes += [exponential, inner]
    return alpha
