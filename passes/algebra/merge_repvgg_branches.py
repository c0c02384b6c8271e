"""Parallel convolutions of one input, added up, are one convolution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pattern, Refuse, Rewrite, constant_tensor, guards, op, option, var

from . import arithmetic
from .batchnorm import read_bn
from .linear import DEFAULT_GROWTH, GROWTH_HELP, Linear, read

_BRANCHES = ("Conv", "BatchNormalization")


@dataclass(frozen=True)
class _Branch:
    """A convolution over the common input as its taps: in each spatial axis from place `first` on, `step` apart.

    `excess` is by how much the output is longer than the input at stride 1, an axis.
    """

    first: tuple[int, ...]
    step: tuple[int, ...]
    taps: tuple[int, ...]
    excess: tuple[int, ...]


@dataclass(frozen=True)
class MergeRepvggBranches(Rewrite):
    """Merge parallel convolutions of one input that are added up, and an identity or BatchNormalization branch, into one.

    Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again", section 3.3. Branches are merged two at a time;
    a Conv that still has its own BatchNormalization is for fuse-conv-bn first.
    """

    name = "merge-repvgg-branches"
    effect = Effect.ROUNDING

    max_growth_bytes: int = option(DEFAULT_GROWTH, GROWTH_HELP, minimum=0)

    def patterns(self) -> Sequence[Pattern]:
        conv = op("Conv", var("x"), ..., bind="conv")
        return (
            op(("Add", "Sum"), conv, op(_BRANCHES, var("x"), ..., bind="other"), commutative=True),
            op(("Add", "Sum"), conv, var("x"), commutative=True),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, root, conv, x = editor.context, match.root, match["conv"], match["x"]
        other: ir.Node | None = match.bound.get("other")
        branches = [conv] if other is None else [conv, other]
        guards.same_graph(root, *branches)
        convs = [read(node, context) for node in branches if node.op_type == "Conv"]
        for node in branches:
            guards.only_consumer(node.outputs[0], "the branch", root)
        for linear in convs:
            linear.guard_growth(self.max_growth_bytes)
        if len({linear.group for linear in convs}) > 1:
            raise Refuse("the branches differ in their groups")
        if len({linear.dims[:2] for linear in convs}) > 1 or len({len(linear.dims) for linear in convs}) > 1:
            raise Refuse("the branches differ in their channels")
        strides = [_per_axis(linear.node, "strides", len(linear.dims) - 2) for linear in convs]
        guards.require(strides.count(strides[0]) == len(strides), "the branches differ in their strides")
        places = [_branch(linear) for linear in convs]
        if len(convs) == 1:
            guards.require(all(s == 1 for s in strides[0]), "the branch beside the convolution is not strided")
            guards.require(convs[0].channels == convs[0].inputs, "the convolution changes the number of channels")
            same = (0,) * len(places[0].taps)
            places.append(_Branch(same, places[0].step, (1,) * len(same), same))
        merged = _merged(places)
        spent = sum(math.prod(p.taps) for p in places[: len(convs)]) + (len(places) > len(convs))
        guards.require(math.prod(merged.taps) <= spent, "one convolution that covers both would compute more than they do")

        weight, bias = _combine(convs, places, merged, other, context)
        first = convs[0]
        attributes = dict(first.node.attributes)
        attributes.pop("auto_pad", None)
        begins = [-f for f in merged.first]
        ends = [e + t * s - s - b for e, t, s, b in zip(merged.excess, merged.taps, merged.step, begins)]
        attributes |= {
            "kernel_shape": ir.AttrInt64s("kernel_shape", merged.taps),
            "dilations": ir.AttrInt64s("dilations", merged.step),
            "pads": ir.AttrInt64s("pads", [*begins, *ends]),
        }
        inputs = [x, editor.constant(weight, f"{first.weight.name}_merged")]
        if bias is not None:
            inputs.append(editor.constant(bias, f"{first.bias.name if first.bias is not None else f'{first.weight.name}_bias'}_merged"))
        new = editor.node("Conv", inputs, attributes, name=first.node.name or None, like=root.outputs[0])
        editor.replace(root.outputs[0], new)


def _branch(linear: Linear) -> _Branch:
    node, spatial = linear.node, linear.dims[2:]
    step = _per_axis(node, "dilations", len(spatial))
    strides = _per_axis(node, "strides", len(spatial))
    auto_pad = guards.attribute(node, "auto_pad", "NOTSET")
    reach = [s * (t - 1) for s, t in zip(step, spatial)]
    if auto_pad == "NOTSET":
        pads = list(guards.attribute(node, "pads", ())) or [0] * (2 * len(spatial))
    elif auto_pad == "VALID":
        pads = [0] * (2 * len(spatial))
    else:
        guards.require(all(s == 1 for s in strides), "its padding depends on the size of the input")
        small = [r // 2 for r in reach]
        large = [r - s for r, s in zip(reach, small)]
        pads = small + large if auto_pad == "SAME_UPPER" else large + small
    guards.require(len(pads) == 2 * len(spatial) and min(pads) >= 0, "its padding is not what a convolution takes")
    begins, ends = pads[: len(spatial)], pads[len(spatial) :]
    return _Branch(tuple(-b for b in begins), step, spatial, tuple(b + e - r for b, e, r in zip(begins, ends, reach)))


def _per_axis(node: ir.Node, name: str, count: int) -> tuple[int, ...]:
    """An attribute of a convolution with one value a spatial axis, 1 by default."""
    return tuple(guards.attribute(node, name, ())) or (1,) * count


def _merged(places: Sequence[_Branch]) -> _Branch:
    """The least convolution whose taps cover those of all."""
    if len({p.excess for p in places}) > 1:
        raise Refuse("the branches pad to different sizes")
    first, steps, taps = [], [], []
    for axis in range(len(places[0].taps)):
        step = {p.step[axis] for p in places if p.taps[axis] > 1} or {1}
        guards.require(len(step) == 1, "the branches differ in their dilations")
        (gap,) = step
        begins = [p.first[axis] for p in places]
        guards.require(all((b - begins[0]) % gap == 0 for b in begins), "the taps of the branches do not fall on one grid")
        ends = [p.first[axis] + (p.taps[axis] - 1) * gap for p in places]
        first.append(min(begins))
        steps.append(gap)
        taps.append((max(ends) - min(begins)) // gap + 1)
    return _Branch(tuple(first), tuple(steps), tuple(taps), places[0].excess)


def _combine(
    convs: Sequence[Linear], places: Sequence[_Branch], merged: _Branch, other: ir.Node | None, context: Context
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight and bias of the sum of the branches."""
    first = convs[0]
    dtype = constant_tensor(first.weight).dtype.numpy()  # type: ignore[union-attr]
    weight = np.zeros((*first.dims[:2], *merged.taps))
    bias = np.zeros(first.channels)
    for linear, place in itertools.zip_longest(convs, places):
        start = [(f - m) // s for f, m, s in zip(place.first, merged.first, merged.step)]
        window = tuple(slice(b, b + t) for b, t in zip(start, place.taps))
        if linear is not None:
            weight[(slice(None), slice(None), *window)] += guards.float_constant(linear.weight, "the weight")
            bias += linear.bias_array()
            continue
        mul, shift = np.ones(first.channels), np.zeros(first.channels)
        if other is not None:
            mul, shift = read_bn(other, context, first.channels)
        outputs = np.arange(first.channels)
        weight[(outputs, outputs % first.dims[1], *start)] += mul
        bias += shift
    needed = bool(bias.any()) or any(linear.bias is not None for linear in convs)
    return arithmetic.rounded(weight, dtype, "the weight"), arithmetic.rounded(bias, dtype, "the bias") if needed else None
