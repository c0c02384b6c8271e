"""Layers one behind the other: what the first gives and the second takes by channel, brought to the same range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Effect, Pass, Refuse, guards, option

from ..algebra.linear import DEFAULT_GROWTH, GROWTH_HELP, Linear, read
from .scaling import Group, by_input, find_groups, moved, only_source, positive

_SWEEPS = 50
_STILL = 1e-3  # a sweep that moves no channel by more than this factor is the last


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Scale the output channels of a layer, and the inputs of those behind it back, so that both weights have like ranges.

    Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", section 4.1: r1 / s and
    r2 s are the same with s = sqrt(r1 / r2), over chains of layers until nothing moves; past Relu, LeakyRelu, PRelu and what
    else lets a scale through. Needed where a weight, or what a layer gives, has one scale for all channels.
    """

    name = "equalize-channels"
    effect = Effect.ROUNDING

    max_growth_bytes: int = option(DEFAULT_GROWTH, GROWTH_HELP, minimum=0)

    def run(self, context: Context) -> None:
        pairs = []
        for group in find_groups(context):
            try:
                pairs.append((group, only_source(group, context)))
            except Refuse as refusal:
                context.log.refuse(group.readers[0], refusal.reason)
        scales = _Chains(pairs, context).balanced() if pairs else {}
        changed = 0.0
        for group, _ in pairs:
            scale = scales[group.value]
            if np.abs(np.log(scale)).max() < _STILL:
                continue
            if not moved(group, scale, context, insert=False, limit=self.max_growth_bytes):
                continue
            changed = max(changed, float(np.exp(np.abs(np.log(scale)).max())))
        if changed:
            context.log.note(f"channels scaled by factors of up to {changed:.3g}")


class _Chains:
    """The largest weights of all layers between each of their inputs and outputs, and how far both are scaled."""

    def __init__(self, pairs: list[tuple[Group, Linear]], context: Context) -> None:
        self.pairs = pairs
        self.tops: dict[ir.Node, np.ndarray] = {}  # [groups, inputs, outputs]
        self.by: dict[ir.Value, np.ndarray] = {}  # what a value is divided by
        self.read: dict[ir.Node, ir.Value] = {}
        self.given: dict[ir.Node, ir.Value] = {}
        for group, source in pairs:
            self.by[group.value] = np.ones(source.channels)
            self.given[source.node] = group.value
            for node in (source.node, *group.readers):
                if node not in self.tops:
                    weight = by_input(read(node, context))
                    self.tops[node] = np.abs(guards.finite(weight, "the scales")).max(axis=3).astype(np.float64)
            self.read.update(dict.fromkeys(group.readers, group.value))

    def balanced(self) -> dict[ir.Value, np.ndarray]:
        """What each value is to be divided by."""
        for _ in range(_SWEEPS):
            moved = 0.0
            for group, source in self.pairs:
                outputs = self._top(source.node).max(axis=1).reshape(-1)
                inputs = np.max([self._top(node).max(axis=2).reshape(-1) for node in group.readers], axis=0)
                with np.errstate(divide="ignore", invalid="ignore"):
                    scale = positive(np.sqrt(outputs / inputs), (outputs, inputs))
                self.by[group.value] *= scale
                moved = max(moved, float(np.abs(np.log(scale)).max()))
            if moved < _STILL:
                break
        return self.by

    def _top(self, node: ir.Node) -> np.ndarray:
        """The largest weights as they are scaled now."""
        top = self.tops[node]
        if node in self.read:
            top = top * self.by[self.read[node]].reshape(*top.shape[:2], 1)
        if node in self.given:
            top = top / self.by[self.given[node]].reshape(top.shape[0], 1, top.shape[2])
        return top
