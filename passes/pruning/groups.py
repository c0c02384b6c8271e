"""Groups of channels that can be cut: sets of tied places of one kind, how much each counts, and which are to go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .channels import Places


@dataclass
class Group:
    """Sets of tied places that lie on the same axes of the same values.

    Attributes:
        label: the weight that makes the channels.
        units: for each set, what stands for it in `Places`; in the order of the channels.
        makers: weights and axes that make the channels.
        width: channels of `label` that one unit takes (those of a head; otherwise 1).
        importance: one value a unit; higher counts for more.
    """

    label: str
    units: list[int]
    makers: list[tuple[ir.Value, int]]
    width: int
    importance: np.ndarray = field(default_factory=lambda: np.zeros(0))


def find_groups(places: Places, makers: set[tuple[ir.Value, int]]) -> tuple[list[Group], dict[str, str]]:
    """The groups that can be cut, in the order of the graph, and for each weight that cannot, why."""
    members: dict[int, dict[tuple[ir.Value, int], None]] = {}
    for axis, reach in places.axes.items():
        for place in reach:
            members.setdefault(places.root(place), {})[axis] = None
    by_kind: dict[frozenset[tuple[ir.Value, int]], list[int]] = {}
    refused: dict[str, str] = {}
    for root, axes in members.items():
        own = [a for a in axes if a in makers]
        if not own:
            continue
        why = places.reason(root)
        if why is None and not all(value.is_initializer() for value, _ in own):
            why = "its weight is made by a node"
        if why is not None:
            for value, _ in own:
                refused.setdefault(value.name or "?", why)
            continue
        by_kind.setdefault(frozenset(axes), []).append(root)
    groups = []
    for kind, roots in by_kind.items():
        own = [a for a in places.axes if a in kind and a in makers]  # in the order of the graph
        first = places.axes[own[0]]
        wanted = set(roots)
        width = sum(places.root(p) in wanted for p in first) // len(roots)
        groups.append(Group(own[0][0].name or "?", sorted(roots), own, max(1, width)))
        refused.pop(groups[-1].label, None)
    return groups, refused


def choose(groups: Sequence[Group], ratio: float, *, over_all: bool, multiple: int, least: int) -> list[set[int]]:
    """The units of each group that are to go.

    Args:
        groups: with their importance.
        ratio: the share of units to cut, of each group or, with `over_all`, of all of them together.
        multiple: channels that are left are a multiple of it, where a group has that many.
        least: channels that are left at least.
    """
    if over_all:
        scaled = [g.importance / (g.importance.mean() or 1.0) for g in groups]
        everything = np.sort(np.concatenate(scaled)) if groups else np.zeros(0)
        count = int(len(everything) * ratio)
        threshold = everything[count] if 0 < count < len(everything) else (-np.inf if not count else np.inf)
        wanted = [int((s < threshold).sum()) for s in scaled]
    else:
        wanted = [int(len(g.units) * ratio) for g in groups]
    chosen = []
    for group, cut in zip(groups, wanted, strict=True):
        left = max(len(group.units) - cut, -(-least // group.width), 1)
        step = max(1, multiple // group.width)
        if len(group.units) >= step:
            left = -(-left // step) * step
        cut = max(0, len(group.units) - left)
        order = np.argsort(group.importance, kind="stable")
        chosen.append({group.units[i] for i in order[:cut]})
    return chosen
