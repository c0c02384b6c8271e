"""The bias before a GELU goes into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Effect, Match, Pattern, Refuse, Rewrite, guards, op, var

from .contrib import DOMAIN, is_constant, require_type, state, vector_of


@dataclass(frozen=True)
class FuseBiasGelu(Rewrite):
    """Write Add of a bias and Gelu as BiasGelu, or as FastGelu with a bias where it is the approximation by tanh.

    For GPUs. On CPUs the runtime fuses the two itself where shapes are dynamic, and where they are not it has a better
    form (Gemm, then Gelu), which this would hide from it: 0.96 to 0.99 times as fast, measured on x86-64.
    """

    name = "fuse-bias-gelu"
    effect = Effect.ROUNDING
    providers = frozenset({"cuda"})
    measured = True

    def patterns(self) -> Sequence[Pattern]:
        add = op("Add", var("a"), var("b"), bind="add")
        return op("Gelu", add), op(("Gelu", "FastGelu"), add, domain=DOMAIN)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, gelu, add = editor.context, match.root, match["add"]
        x, bias = match["a"], match["b"]
        if not is_constant(bias):
            x, bias = bias, x
        if not is_constant(bias):
            return  # a residual, or a bias that is computed
        guards.same_graph(*match.nodes)
        guards.only_consumer(add.outputs[0], "the biased value", gelu)
        require_type(context, x)
        dims = context.dims(x)
        guards.require(bool(dims), "the rank of its input is not known")
        if not vector_of(context, bias, dims[-1]):  # type: ignore[index]
            raise Refuse(f"the bias {bias.name!r} is not a vector along the last dimension of its input")
        fast = gelu.op_type == "FastGelu" or guards.attribute(gelu, "approximate", "none") == "tanh"
        state(editor, "FastGelu" if fast else "BiasGelu", [x, bias], of=gelu)
