"""Structured pruning: channels, neurons and attention heads that count for least are cut out, with all that is tied to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.rewriting import Context, Effect, Pass, Refuse, option

from .cutting import cut
from .groups import choose, find_groups
from .importance import IMPORTANCE, measure
from .ties import tie_all

_MANY = 12  # groups that a note names


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Cut the channels, neurons and attention heads of least magnitude out of the model, a share of each group.

    What is tied goes together: through residual Adds, Concats, depthwise convolutions, normalizations, Flatten, and
    heads that a Reshape makes. Structure as in Fang et al. 2023, "DepGraph"; importance as in Li et al. 2017, "Pruning
    Filters for Efficient ConvNets".
    """

    name = "prune-channels"
    effect = Effect.LOSSY

    ratio: float = option(0.25, "share of the channels that is cut", minimum=0.0, maximum=0.95)
    scope: str = option("layer", "the share is of each group, or of all of them together", choices=("layer", "global"))
    importance: str = option(
        "l2", "norm of the weights that make a channel, scale of its BatchNormalization, or what the outputs feel of it", choices=IMPORTANCE
    )
    multiple: int = option(8, "channels that are left are a multiple of it, where there are that many", minimum=1)
    least: int = option(8, "channels of a group that are left at least", minimum=1)

    def run(self, context: Context) -> None:
        places, makers = tie_all(context)
        groups, refused = find_groups(places, makers)
        for weight, why in refused.items():
            context.log.refuse(weight, why)
        for group in list(groups):
            try:
                group.importance = measure(self.importance, context, group, places)
            except Refuse as refusal:
                context.log.refuse(group.label, refusal.reason)
                groups.remove(group)
        chosen = choose(groups, self.ratio, over_all=self.scope == "global", multiple=self.multiple, least=self.least)
        gone: set[int] = set()
        what = "magnitude" if self.importance in ("l1", "l2") else "importance"
        lines = []
        for group, units in zip(groups, chosen, strict=True):
            if not units:
                context.log.refuse(group.label, f"of {len(group.units)} channels or heads none may go")
                continue
            if not context.log.permit(label=group.label):
                continue
            gone |= units
            lost = np.isin(group.units, list(units))
            share = (group.importance[lost] ** 2).sum() / ((group.importance**2).sum() or 1.0)
            lines.append(f"{group.label}: {len(units)} of {len(group.units)}, {share:.1%} of the squared {what}")
        if not gone:
            return
        saved = cut(context, places, lambda place: places.root(place) in gone)
        rest = f" and {len(lines) - _MANY} more" if len(lines) > _MANY else ""
        context.log.note(f"{len(gone)} channels or heads, {saved:,} bytes of weights: {'; '.join(lines[:_MANY])}{rest}")
