"""A residual Add, with the bias before it, and the normalization behind it as one operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Rewrite, guards, op, use_count, var

from ..fusion.reading import consumers, made_by
from .contrib import DOMAIN, is_constant, require_type, vector_of

_OPERATORS = {"LayerNormalization": "SkipLayerNormalization", "RMSNormalization": "SkipSimplifiedLayerNormalization"}


@dataclass(frozen=True)
class FuseSkipLayernorm(Rewrite):
    """Write a residual Add and LayerNormalization as SkipLayerNormalization, and with RMSNormalization as its simplified form.

    A bias before the Add goes in too, and the sum is given out where others need it. For GPUs: on x86-64, ONNX Runtime
    1.32 takes 5 to 8 times as long for the one operator as for Sum and LayerNormalization, and up to twice as long as
    for Add and RMSNormalization.
    """

    name = "fuse-skip-layernorm"
    effect = Effect.ROUNDING
    providers = frozenset({"cuda"})
    measured = True

    def patterns(self) -> Sequence[Pattern]:
        return (op(("Add", "Sum"), var("a"), var("b")),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, add, a, b = editor.context, match.root, match["a"], match["b"]
        norm = _norm_behind(add)
        if norm is None or is_constant(a) or is_constant(b):
            return  # nothing is normalized, or what is added is a bias and no residual
        match.nodes.append(norm)
        guards.same_graph(*match.nodes)
        dims = context.dims(a)
        guards.require(dims is not None and dims == context.dims(b), "the two summands are not known to be of one shape")
        guards.require(len(dims) in (2, 3), "the operator takes a matrix or a batch of them")  # type: ignore[arg-type]
        _require_last_axis(context, norm, dims)  # type: ignore[arg-type]
        require_type(context, a)
        total = add.outputs[0]
        sum_needed = use_count(total) > 1 or total.is_graph_output()
        x, skip, bias = _with_bias(context, match, a, b)
        weights = list(norm.inputs[1:])
        if norm.op_type == "LayerNormalization":
            weights += [None] * (2 - len(weights))
        inputs = [x, skip, *weights, bias]
        while inputs[-1] is None:
            inputs.pop()
        # It stands where the Add stood: others may need the sum before the normalization.
        outputs = editor.node(
            _OPERATORS[norm.op_type], inputs, {"epsilon": float(guards.attribute(norm, "epsilon", 1e-5))}, domain=DOMAIN,
            name=norm.name or None, outputs=4 if sum_needed else 1, like=norm.outputs[0],
        )
        if not sum_needed:
            editor.replace(norm.outputs[0], outputs)
            return
        for left_out in outputs[1:3]:
            left_out.name = ""
        editor.replace(norm.outputs[0], outputs[0])
        editor.replace(total, outputs[3])


def _norm_behind(add: ir.Node) -> ir.Node | None:
    """The first normalization of what an Add gives."""
    return next((n for n in consumers(add.outputs[0]) if n.op_type in _OPERATORS and n.inputs[0] is add.outputs[0]), None)


def _require_last_axis(context: Context, norm: ir.Node, dims: Sequence[int | str]) -> None:
    """Refuse a normalization over other axes than the last, of another precision, or that gives out its statistics."""
    axis = guards.attribute(norm, "axis", -1)
    guards.require(axis in (-1, len(dims) - 1), "it normalizes more axes than the last")
    guards.require(guards.attribute(norm, "stash_type", 1) == 1, "it computes in another type than float32")
    guards.unused_outputs(norm)
    scale = norm.inputs[1] if len(norm.inputs) > 1 else None
    guards.require(scale is not None and vector_of(context, scale, dims[-1]), "its scale is not a vector along the last axis")
    offset = norm.inputs[2] if len(norm.inputs) > 2 else None
    guards.require(offset is None or vector_of(context, offset, dims[-1]), "its bias is not a vector along the last axis")
    for value in (scale, offset):
        guards.require(value is None or value.producer() is None, "its scale or bias is computed, perhaps behind the sum")


def _with_bias(context: Context, match: Match, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """The summands, and the bias that one of them ends with."""
    for x, skip in ((a, b), (b, a)):
        before = made_by(x, "Add")
        if before is None or use_count(x) != 1 or x.is_graph_output() or before.graph is not match.root.graph:
            continue
        for value, bias in (before.inputs, before.inputs[::-1]):
            if is_constant(bias) and vector_of(context, bias, context.dims(x)[-1]) and context.dims(value) == context.dims(x):
                match.nodes.append(before)
                return value, skip, bias
    return a, b, None
