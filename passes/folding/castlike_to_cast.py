"""CastLike where the type to take is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, op, var

from ..arguments import element_type


@dataclass(frozen=True)
class CastLikeToCast(Rewrite):
    """Turn CastLike into Cast, or into nothing, where the type is known: it no longer consumes the value it looks at."""

    name = "castlike-to-cast"

    def patterns(self) -> Sequence[Pattern]:
        return (op("CastLike", var("x"), var("like")),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, x, context = match.root, match["x"], editor.context
        to = element_type(context, match["like"])
        if to is None:
            return
        if element_type(context, x) == to:
            editor.replace(node.outputs[0], x)
            return
        kept = {a.name: a for a in node.attributes.values()}
        cast = editor.node("Cast", [x], {**kept, "to": int(to)}, like=node.outputs[0])
        editor.replace(node.outputs[0], cast)
