"""A residual Add before a LayerNormalization, written so that the runtime keeps the two apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Refuse, Rewrite, constant_tensor, guards, op, same_domain, var


@dataclass(frozen=True)
class KeepAddBeforeLayernorm(Rewrite):
    """Write a residual Add before a LayerNormalization as Sum, so that the runtime does not fuse the two (for CPUs).

    ONNX Runtime 1.32 makes a SkipLayerNormalization of an Add of rank 3 that only a LayerNormalization consumes (as in
    BERT, not in models that normalize first), which on a CPU is slower than the two. It does not look for a Sum. The
    sum of two values is the same either way, bit by bit. Measured on x86-64 with AVX-512: MiniLM-L6 of torch's new
    exporter 1.09 / 1.06 / 1.04 times as fast at sequences of 128 / 32 / 16 on one thread (1.07 / 1.03 / 1.04 on two),
    BERT-base 1.07 (1.04). Where the runtime does not know the shapes it does not fuse, and nothing is gained or lost.
    On a GPU the fused operator is the better one.
    """

    name = "keep-add-before-layernorm"
    providers = frozenset({"cpu"})
    measured = True
    hides = frozenset({"com.microsoft::SkipLayerNormalization"})

    def patterns(self) -> Sequence[Pattern]:
        norms = op("LayerNormalization", op("Add", var("a"), var("b"), bind="add"), ..., bind="norm")
        spelled_out = op("ReduceMean", op("Add", var("a"), var("b"), bind="add"), ..., bind="norm")
        return norms, spelled_out

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, add = editor.context, match["add"]
        operands = match["a"], match["b"]
        if any(constant_tensor(v) is not None for v in operands):
            return  # a bias, not a residual
        if not _only_normalized(add.outputs[0], match["norm"]):
            return  # the runtime fuses only a sum that nothing else needs
        guards.same_graph(*match.nodes)
        if _adds_embeddings(add):
            raise Refuse("it adds up embeddings, for which the runtime has a better fusion")
        guards.require(context.opset(add) >= 8, "Sum does not broadcast before opset 8")
        guards.require(_same_residual_shape(context, *operands), "it is not known to be of rank 3, which alone is fused")
        guards.require(context.dtype(operands[0]) == ir.DataType.FLOAT, "it is not known to be of float32")
        output = add.outputs[0]
        # The new node stands before the normalization; all consumers of the sum come behind it or are it.
        editor.replace(output, editor.node("Sum", list(operands), name=add.name or None, like=output))


def _only_normalized(x: ir.Value, norm: ir.Node) -> bool:
    """Whether nothing but one normalization consumes `x`: an operator, or its mean and x - mean where it is spelled out."""
    uses = x.uses()
    if x.is_graph_output() or norm.inputs[0] is not x:
        return False
    if norm.op_type == "LayerNormalization":
        return len(uses) == 1
    centred = {u.node for u in norm.outputs[0].uses() if u.node.op_type == "Sub" and u.idx == 1 and u.node.inputs[0] is x}
    return bool(centred) and {u.node for u in uses} == {norm, *centred} and len(norm.outputs[0].uses()) == len(centred)


def _adds_embeddings(add: ir.Node) -> bool:
    front = [v.producer() for v in add.inputs if v is not None]
    front += [v.producer() for n in front if n is not None and n.op_type == "Add" for v in n.inputs if v is not None]
    gathers = (n for n in front if n is not None and n.op_type == "Gather" and same_domain(n.domain, ""))
    return any(n.inputs[0] is not None and n.inputs[0].is_initializer() for n in gathers)


def _same_residual_shape(context: Context, a: ir.Value, b: ir.Value) -> bool:
    left, right = context.dims(a), context.dims(b)
    if left is None or right is None or not len(left) == len(right) == 3:
        return False
    # Symbols of ours may differ where the runtime sees the same: only two different numbers settle it.
    return all(i == j or isinstance(i, str) or isinstance(j, str) for i, j in zip(left, right))
