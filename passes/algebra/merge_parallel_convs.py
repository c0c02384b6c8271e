"""Convolutions of one input with one geometry are one convolution with more channels."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Refuse, Rewrite, guards, op, option, var

from . import parallel
from .linear import DEFAULT_GROWTH, GROWTH_HELP, read
from .parallel import Branch

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_BLOCK = 16  # channels that the runtime computes at a time, and rounds up to, where vectors hold 16 floats
_FIXED = 200_000  # multiply-adds in the time that the nodes of a small model take in any case
_NEUTRAL = {"strides": 1, "dilations": 1, "pads": 0, "group": 1, "auto_pad": "NOTSET"}


@dataclass(frozen=True)
class MergeParallelConvs(Rewrite):
    """Merge Convs of one input with equal kernels, strides, dilations and pads into one Conv, activations included.

    Where their outputs meet again side by side in a Concat of channels, nothing else is needed: measured under ONNX
    Runtime 1.32 (AVX-512), 1.0 to 1.5 times as fast. Otherwise a Split follows. With 16 channels or more each
    that is 0.7 to 1.1 times as fast (the Split copies, and stands between convolutions in blocked layout). It gains, 1.1
    times for 1x1 and 1.4 to 1.6 for 3x3 kernels, where the Convs have so few channels each (2 and 4, say) that the
    runtime, which computes 16 at a time, wastes most of its work. So a Split is accepted where it at least halves the
    blocks of 16 channels, and saves `min-saving` (0: always).
    """

    name = "merge-parallel-convs"
    effect = Effect.ROUNDING
    kinds = frozenset({"onnx", "torch"})
    measured = True

    min_saving: int = option(
        64, "multiply-adds of padding to 16 channels that a merge must save for each element that its Split copies", minimum=0
    )
    max_growth_bytes: int = option(DEFAULT_GROWTH, GROWTH_HELP, minimum=0)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Conv", var("x"), ...),)

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import merge_parallel_convs

        merge_parallel_convs.run(context, self.max_growth_bytes)

    def run(self, context: Context) -> None:
        for nodes in parallel.groups(context, ("Conv",), _key):
            branches = [parallel.with_tail(linear) for linear in parallel.readable(nodes, lambda n: read(n, context), context)]
            parallel.apply_to(self, branches, _along_channels, context)

    def rewrite(self, match: Match, editor: Editor) -> None:
        merge = partial(_merge, editor)
        if parallel.met(match, editor, merge, self.max_growth_bytes):
            return
        branches = self._worthwhile(match["branches"], editor.context)
        parallel.split(branches, 1, editor, merge, self.max_growth_bytes)

    def _worthwhile(self, branches: list[Branch], context: Context) -> list[Branch]:
        """The branches to merge with a Split behind: all, or those with a part of a block of channels."""
        uneven = [b for b in branches if b.linear.channels % _BLOCK]
        for chosen in (branches, uneven):
            if len(chosen) < 2:
                continue
            channels = [b.linear.channels for b in chosen]
            taps = math.prod(chosen[0].linear.dims[1:])
            apart, together = sum(map(_blocks, channels)), _blocks(sum(channels))
            saved = (apart - together) * _BLOCK * taps
            dims = context.static_dims(chosen[0].linear.node.outputs[0])
            places = math.prod((dims[0], *dims[2:])) if dims else None
            pays = apart >= 2 * together and saved >= self.min_saving * sum(channels) and (places is None or saved * places >= _FIXED)
            if pays or self.min_saving == 0:
                return chosen
        raise Refuse("a Split of its output would cost more than one convolution saves")


def _blocks(channels: int) -> int:
    return -(-channels // _BLOCK)


def _key(node: ir.Node) -> Hashable | None:
    """Equal for convolutions that differ in their output channels alone; None for grouped ones."""
    attributes = node.attributes
    group = attributes.get("group")
    if group is not None and (group.is_ref() or group.value != 1):
        return None
    weight = parallel.weight_type(node.inputs[1])  # type: ignore[arg-type]
    if weight is None or len(weight[0]) < 3:
        return None
    neutral = {n for n, v in _NEUTRAL.items() if n in attributes and not attributes[n].is_ref() and _is(attributes[n].value, v)}
    return weight[0][1:], weight[1], parallel.attribute_key(node, {"kernel_shape", *neutral})


def _is(value: object, neutral: object) -> bool:
    return all(v == neutral for v in value) if isinstance(value, list | tuple) else value == neutral


def _along_channels(concat: ir.Node, branch: Branch) -> bool:
    axis = concat.attributes.get("axis")
    rank = len(branch.linear.dims)
    return axis is not None and not axis.is_ref() and axis.value in (1, 1 - rank)


def _merge(editor: Editor, branches: Sequence[Branch], like: ir.Value | None) -> ir.Value:
    """State the one convolution (and activation) for the branches; its output."""
    linears = [b.linear for b in branches]
    first = linears[0]
    weight = parallel.joined([guards.float_constant(linear.weight, "the weight") for linear in linears], 0)
    inputs = [first.node.inputs[0], editor.constant(weight, f"{first.weight.name}_merged")]
    bias = parallel.joined_bias(linears)
    if bias is not None:
        source = next(linear.bias.name for linear in linears if linear.bias is not None)
        inputs.append(editor.constant(bias, f"{source}_merged"))
    attributes = dict(first.node.attributes)
    new = editor.node("Conv", inputs, attributes, name=first.node.name or None, like=like)
    return parallel.state_tail(branches[0], new, editor, like)
