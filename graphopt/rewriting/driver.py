"""The driver of rewrites: operator-indexed candidates, a worklist, a fixpoint; linear in the number of nodes."""

from __future__ import annotations

from collections import deque

import onnx_ir as ir

from graphopt.rewriting.base import Refuse, Rewrite
from graphopt.rewriting.context import Context
from graphopt.rewriting.editor import Editor
from graphopt.rewriting.pattern import Match, Pattern
from graphopt.rewriting.uses import use_count

_NEIGHBOURS = 32  # nodes looked at behind one change; a later round finds what lies further off
_VISITS_PER_NODE = 64  # a rewrite that feeds itself for ever is a bug of that rewrite: stop it


def drive(rewrite: Rewrite, context: Context) -> None:
    """Apply one rewrite wherever its patterns match and its guards pass, until nothing changes."""
    patterns = list(rewrite.patterns())
    roots: dict[str, list[Pattern]] = {}
    for pattern in patterns:
        for op_type in pattern.types:
            roots.setdefault(op_type, []).append(pattern)
    reach = max(p.depth for p in patterns) - 1
    queue = deque(context.index.of_types(tuple(roots)))
    queued = set(queue)
    budget = _VISITS_PER_NODE * (len(queue) + 16)
    while queue:
        node = queue.popleft()
        queued.discard(node)
        if node.graph is None:
            continue
        budget -= 1
        if budget < 0:
            raise RuntimeError(f"{rewrite.name} does not come to an end (last at {node.name})")
        match = None
        for pattern in roots.get(node.op_type, ()):
            match = pattern.match(node)
            if match is not None:
                break
        if match is None:
            context.log.settled(node)
            continue
        changed = apply(rewrite, match, context)
        for near in _neighbourhood(changed, reach) if changed else ():
            if near.op_type in roots and near not in queued:
                queued.add(near)
                queue.append(near)


def apply(rewrite: Rewrite, match: Match, context: Context) -> list[ir.Node]:
    """Try one match; the nodes that were made or touched, none where it was refused or held back."""
    editor = Editor(context, match)
    try:
        rewrite.rewrite(match, editor)
        if not editor.empty:
            editor.check()
    except Refuse as refusal:
        editor.discard()
        context.log.refuse(match.root, refusal.reason)
        return []
    except BaseException:
        editor.discard()
        raise
    if editor.empty or not context.log.permit(match.root):
        editor.discard()
        return []
    context.log.settled(match.root)
    touched, _ = editor.commit()
    return touched


def _neighbourhood(changed: list[ir.Node], reach: int) -> list[ir.Node]:
    """The changed nodes and those behind them that a pattern could reach them from."""
    found = dict.fromkeys(changed)
    front = changed
    for _ in range(reach):
        following: list[ir.Node] = []
        for node in front:
            for value in node.outputs:
                if use_count(value) > _NEIGHBOURS:
                    continue
                for usage in value.uses():
                    if usage.node not in found:
                        found[usage.node] = None
                        following.append(usage.node)
            if len(found) > _NEIGHBOURS * (reach + 1) + len(changed):
                break
        front = following
    return [n for n in found if n.graph is not None]
