"""Conv, ConvTranspose, Gemm or MatMul before BatchNormalization: the normalization goes into weight and bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, const, constant_tensor, guards, op, option, use_count

from .batchnorm import read_bn
from .linear import DEFAULT_GROWTH, GROWTH_HELP, LINEAR, Linear, read

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_MADE = "graphopt.folded"  # in the meta of a weight: what was made of it, and by which BatchNormalization
_SIBLINGS = 64


@dataclass(frozen=True)
class FuseConvBn(Rewrite):
    """Fold an inference BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before it.

    y = (W x + b) * mul + add becomes (W mul) x + (b mul + add): Jacob et al. 2018, section 3.2.
    """

    name = "fuse-conv-bn"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})

    max_growth_bytes: int = option(DEFAULT_GROWTH, GROWTH_HELP, minimum=0)

    def patterns(self) -> Sequence[Pattern]:
        biased = op("Add", op("MatMul", bind="linear"), const("bias"), commutative=True, bind="add")
        return (
            op("BatchNormalization", op(LINEAR, bind="linear"), ..., bind="bn"),
            op("BatchNormalization", biased, ..., bind="bn"),
        )

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import fuse_conv_bn

        fuse_conv_bn.run(context, self.max_growth_bytes)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, bn, node = editor.context, match.root, match["linear"]
        add = match.bound.get("add")
        guards.same_graph(*match.nodes)
        linear = read(node, context, add)
        if add is not None:
            guards.only_consumer(node.outputs[0], "the product", add)
        guards.only_consumer(linear.output, "the output before it", bn)
        if node.op_type == "MatMul":
            rank = context.rank(node.outputs[0])
            guards.require(rank is not None, "the rank of the product is not known")
            guards.require(rank == 2, f"of rank {rank}, its channels are on axis 1, and those of the MatMul on the last")
        y, x = bn.outputs[0], node.inputs[0]
        mul, shift = read_bn(bn, context, linear.channels)
        reusable = add is None and context.scope(bn).function is None
        made = _made_before(linear, bn) if reusable else None
        if made is not None:
            linear.state(editor, old=y, x=x, weight=made[0], bias=made[1])
            return
        alike = reusable and use_count(linear.weight) > 1 and _all_alike(linear, bn)
        if not alike:
            linear.guard_growth(self.max_growth_bytes)
        bias = linear.bias_array() * mul + shift
        needed = linear.bias is not None or bool(bias.any())
        weight, bias = linear.state(editor, old=y, x=x, weight=linear.weight_times_output(mul), bias=bias if needed else None)
        if alike:
            data = weight.const_value, None if bias is None else bias.const_value
            linear.weight.meta.setdefault(_MADE, []).append((_key(node, bn), weight, data[0], bias, data[1]))


def _all_alike(linear: Linear, bn: ir.Node) -> bool:
    """Whether every consumer of the weight is such an operator before such a BatchNormalization: one copy serves all."""
    if use_count(linear.weight) > _SIBLINGS or linear.weight.is_graph_output():
        return False
    key = _key(linear.node, bn)
    for usage in linear.weight.uses():
        if use_count(usage.node.outputs[0]) != 1:
            return False
        followers = usage.node.outputs[0].uses()
        if usage.idx != 1 or usage.node.graph is not bn.graph or usage.node.outputs[0].is_graph_output():
            return False
        follower = followers[0].node
        if follower.op_type != "BatchNormalization" or followers[0].idx != 0 or not _same(_key(usage.node, follower), key):
            return False
    return True


def _made_before(linear: Linear, bn: ir.Node) -> tuple[ir.Value, ir.Value | None] | None:
    """Weight and bias that were made earlier of the same weight, bias and BatchNormalization, and are still there."""
    earlier = linear.weight.meta.get(_MADE)
    if not earlier:
        return None
    key = _key(linear.node, bn)
    for made_of, weight, weight_data, bias, bias_data in earlier:
        if (
            _same(made_of, key)
            and weight.is_initializer() and weight.graph is bn.graph and weight.const_value is weight_data
            and (bias is None or (bias.is_initializer() and bias.graph is bn.graph and bias.const_value is bias_data))
        ):
            return weight, bias
    return None


def _key(node: ir.Node, bn: ir.Node) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """What the folded weight and bias depend on, beside the weight: tensors, to be compared by identity, and the rest."""
    tensors = tuple(constant_tensor(v) for v in (*bn.inputs[1:5], *node.inputs[2:3]) if v is not None)
    attributes = [*(node.attributes.get(name) for name in ("group", "transB", "alpha", "beta")), bn.attributes.get("epsilon")]
    return tensors, (node.op_type, *(None if a is None else a.ref_attr_name if a.is_ref() else a.value for a in attributes))


def _same(a: tuple[tuple[object, ...], tuple[object, ...]], b: tuple[tuple[object, ...], tuple[object, ...]]) -> bool:
    return len(a[0]) == len(b[0]) and all(x is y and x is not None for x, y in zip(a[0], b[0])) and a[1] == b[1]
