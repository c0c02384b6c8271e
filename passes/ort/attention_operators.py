"""What the fusions into attention operators of com.microsoft share."""

from __future__ import annotations

from graphopt.rewriting import Match, guards

from ..attention.recognize import Attention

DOMAIN = "com.microsoft"


def claim(match: Match, attention: Attention) -> None:
    """Take the nodes of an attention into a match; refuses where its result stays by heads."""
    guards.require(attention.merged is not None, "its result is not brought to heads side by side")
    match.nodes.extend(n for n in attention.nodes if n not in match.nodes)
    guards.same_graph(*match.nodes)
