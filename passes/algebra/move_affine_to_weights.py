"""A constant scale or shift goes into weights that are not next to it, past operators that only move elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import (
    Context,
    Editor,
    Effect,
    Match,
    Pattern,
    Refuse,
    Rewrite,
    const,
    constant_tensor,
    guards,
    op,
    option,
    same_domain,
    use_count,
    var,
)

from .batchnorm import guard_inference, read_bn
from .fold_affine import affine_of, guard_runtime_fusion
from .linear import DEFAULT_GROWTH, GROWTH_HELP, LINEAR
from .movement import ONE_TO_ONE, Affine
from .plans import BRANCHES, Nothing, Plan, ahead, back


@dataclass(frozen=True)
class MoveAffineToWeights(Rewrite):
    """Fold a constant scale or shift into weights past Reshape, Transpose, Concat, Split, Pad, pooling, Resize and Relu.

    Backwards into the Conv, ConvTranspose, Gemm or MatMul that it comes from, or forwards into all that consume it; what
    stands between stays, and one node goes. Only a positive scale passes a Relu or a maximum, no shift passes padding
    with zeros, and a scale before an Add of a constant passes it: x m + a = (x + a / m) m. Measured under ONNX Runtime
    1.32 on one thread: PP-OCRv4 recognition 1.06 times as fast, detection 1.04; the scales of queries and keys in a ViT,
    which the runtime would fold into the product of the two, 1.00.
    """

    name = "move-affine-to-weights"
    effect = Effect.ROUNDING

    max_growth_bytes: int = option(DEFAULT_GROWTH, GROWTH_HELP, minimum=0)

    def patterns(self) -> Sequence[Pattern]:
        return (
            op(("Add", "Mul", "Sub"), var("x"), const("constant"), commutative=True),
            op("Div", var("x"), const("constant")),
            op("Neg", var("x")),
            op("BatchNormalization", var("x"), ...),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, root, x = editor.context, match.root, match["x"]
        if constant_tensor(x) is not None or context.scope(root).function is not None:
            return
        reasons = []
        for backwards in (True, False):
            plan = Plan()
            try:
                if not _leads_to_weights(root, backwards):
                    continue
                affine = _affine(match, context)
                if backwards:
                    back(x, affine, root, root, plan, context)
                else:
                    if root.op_type not in ("BatchNormalization", "Neg"):
                        guard_runtime_fusion(x)
                    ahead(root.outputs[0], affine, root, plan, context)
                plan.state(editor, self.max_growth_bytes)
            except Nothing:
                continue
            except Refuse as refusal:
                reasons.append(refusal.reason)
                continue
            editor.replace(root.outputs[0], x)
            return
        if reasons:
            raise Refuse(reasons[0])


def _leads_to_weights(root: ir.Node, back: bool) -> bool:
    """A quick look in one direction, before anything is read: whether the next operator could be on the way to weights."""
    if back:
        x = next(v for v in root.inputs if v is not None and constant_tensor(v) is None)
        node = x.producer()
        return node is not None and same_domain(node.domain, "") and (
            node.op_type in ONE_TO_ONE or node.op_type in ("Concat", "Split", "Add", "Sum") or root.op_type == "Neg"
        )  # fmt: skip
    value = root.outputs[0]
    if value.is_graph_output() or not 0 < use_count(value) <= BRANCHES:
        return False
    adjacent = use_count(value) == 1 and root.op_type != "Neg"  # what fold-affine is for
    kinds = {u.node.op_type for u in value.uses()}
    return kinds <= (ONE_TO_ONE | {"Concat", "Split", "Add", "Sub"} | (set() if adjacent else set(LINEAR)))


def _affine(match: Match, context: Context) -> Affine:
    """What the root computes of x."""
    root, x = match.root, match["x"]
    if root.op_type == "Neg":
        return Affine.of(np.asarray(-1.0), np.asarray(0.0))
    dims = context.dims(x)
    if root.op_type == "BatchNormalization":
        guard_inference(root, context)
        guards.require(dims is not None and len(dims) > 1 and isinstance(dims[1], int), "the number of channels is not known")
        shape = (1, dims[1], *[1] * (len(dims) - 2))  # type: ignore[index, arg-type]
        mul, shift = read_bn(root, context, dims[1])  # type: ignore[index, arg-type]
        return Affine.of(mul.reshape(shape), shift.reshape(shape))
    constant = match["constant"]
    value = guards.float_constant(constant, "the constant")
    if dims is None:
        if value.ndim:
            raise Nothing
    else:
        widens = value.ndim > len(dims) or any(c not in (1, d) for c, d in zip(value.shape[::-1], dims[::-1]))
        guards.require(not widens, "the constant may widen the value")
        value = value.reshape((*[1] * (len(dims) - value.ndim), *value.shape))
    guards.require(value.size <= 1 << 20, "the constant is large")
    return Affine.of(*affine_of(root, constant, value))


