"""A 1x1 convolution next to another convolution, with nothing between them, is part of that one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.rewriting import Editor, Effect, Match, Pattern, Refuse, Rewrite, constant_tensor, guards, op, option, var

from . import arithmetic
from .consecutive import MAX_WORK, WORK_HELP, conv_product, guard_work
from .linear import DEFAULT_GROWTH, GROWTH_HELP, Linear, read, unpadded

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class MergeConsecutiveConvs(Rewrite):
    """Merge a 1x1 Conv with the Conv directly before or behind it, where one Conv computes less than the two.

    A bias of the first reaches the second's padding in neither form, so a first Conv with a bias before one that pads
    stays.
    """

    name = "merge-consecutive-convs"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})

    max_growth_bytes: int = option(DEFAULT_GROWTH, GROWTH_HELP, minimum=0)
    max_work: int = option(MAX_WORK, WORK_HELP, minimum=0)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Conv", op("Conv", var("x"), ..., bind="first"), ..., bind="second"),)

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import merge_consecutive_convs

        merge_consecutive_convs.run(context, self.max_growth_bytes, self.max_work)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, before, behind = editor.context, match["first"], match["second"]
        if not any(_may_be_pointwise(node) for node in (before, behind)):
            return
        guards.same_graph(before, behind)
        first, second = read(before, context), read(behind, context)
        pointwise = [_pointwise(linear) for linear in (first, second)]
        if not any(pointwise):
            return
        guards.only_consumer(before.outputs[0], "the output of the first", behind)
        guards.require(first.group == 1 and second.group == 1, "one of the convolutions is grouped")
        guards.require(first.channels == second.inputs, "the channels do not fit")
        spatial = second if pointwise[0] else first
        _guard_cost(first, second, spatial)
        guard_work(math.prod(spatial.dims[2:]) * first.inputs * first.channels * second.channels, self.max_work)
        for linear in (first, second):
            linear.guard_growth(self.max_growth_bytes)

        bias = None
        if first.bias is not None and (shift := first.bias_array()).any():
            # A 1x1 Conv has no border; another must not pad, for padding is of zeros and not of the bias.
            bias = second.bias_array() + second.answer_to_constant(shift)
        elif first.bias is not None or second.bias is not None:
            bias = second.bias_array()
        dtype = constant_tensor(first.weight).dtype.numpy()  # type: ignore[union-attr]
        arrays = [guards.finite(guards.float_constant(linear.weight, "the weight"), "the weight") for linear in (first, second)]
        weight = arithmetic.rounded(conv_product(*arrays), dtype, "the weight")
        attributes = dict(spatial.node.attributes)
        inputs = [match["x"], editor.constant(weight, f"{second.weight.name}_merged")]
        if bias is not None:
            source = (second.bias or first.bias).name  # type: ignore[union-attr]
            inputs.append(editor.constant(arithmetic.rounded(bias, dtype, "the bias"), f"{source}_merged"))
        output = behind.outputs[0]
        editor.replace(output, editor.node("Conv", inputs, attributes, name=behind.name or None, like=output))


def _may_be_pointwise(node) -> bool:
    tensor = constant_tensor(node.inputs[1])
    return tensor is None or all(t == 1 for t in tensor.shape.numpy()[2:])


def _pointwise(linear: Linear) -> bool:
    """Whether a convolution looks at one place at a time: 1x1, not padded, not strided."""
    node = linear.node
    if any(t != 1 for t in linear.dims[2:]):
        return False
    auto_pad = guards.attribute(node, "auto_pad", "NOTSET")  # SAME pads nothing where kernel and stride are 1
    return all(s == 1 for s in guards.attribute(node, "strides", ())) and (auto_pad.startswith("SAME") or unpadded(node))


def _guard_cost(first: Linear, second: Linear, spatial: Linear) -> None:
    """Refuse where the one convolution would compute as much as the two, for each place of the output."""
    taps = math.prod(spatial.dims[2:])
    places = math.prod(guards.attribute(second.node, "strides", ()))  # of the first's output, for one of the second's
    two = places * math.prod(first.dims) + math.prod(second.dims)
    if taps * first.inputs * second.channels >= two:
        raise Refuse("one convolution would compute as much as the two do")
