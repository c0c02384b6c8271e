"""The driver of rewrites on ATen graphs: operator-indexed candidates, a worklist, a fixpoint; linear in the nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from torch import fx

from graphopt.aten.context import AtenContext
from graphopt.aten.editor import AtenEditor
from graphopt.aten.program import operator_of
from graphopt.rewriting.base import Refuse

_NEIGHBOURS = 32  # nodes looked at behind one change; a later round finds what lies further off
_VISITS_PER_NODE = 64  # a rewrite that feeds itself for ever is a bug of that rewrite: stop it

Rewriter = Callable[[fx.Node, AtenEditor], None]


def drive(context: AtenContext, operators: Sequence[str], rewrite: Rewriter, *, reach: int = 2) -> None:
    """Call `rewrite` on every node of the given operators, again where something near changed, until nothing does.

    Args:
        operators: of the roots, "aten.relu.default".
        rewrite: looks at a node and states a replacement through the editor; it returns without one where there is
            nothing to do, and raises `Refuse` where a guard turns the match down.
        reach: how many operators behind a change a root may stand that is looked at again.
    """
    wanted = frozenset(operators)
    queue = deque(context.of(operators))
    queued = set(queue)
    budget = _VISITS_PER_NODE * (len(queue) + 16)
    while queue:
        node = queue.popleft()
        queued.discard(node)
        if node not in context.index.get(operator_of(node), ()):
            continue
        budget -= 1
        if budget < 0:
            raise RuntimeError(f"{context.log.name} does not come to an end (last at {node.name})")
        for near in _neighbourhood(apply(context, node, rewrite), reach):
            if near not in queued and operator_of(near) in wanted:
                queued.add(near)
                queue.append(near)


def apply(context: AtenContext, root: fx.Node, rewrite: Rewriter) -> list[fx.Node]:
    """Try one node; the nodes that were made or touched, none where it was refused or held back."""
    editor = AtenEditor(context, root)
    try:
        rewrite(root, editor)
        if not editor.empty:
            editor.check()
    except Refuse as refusal:
        editor.discard()
        context.log.refuse(root, refusal.reason)
        return []
    except BaseException:
        editor.discard()
        raise
    if editor.empty:
        editor.discard()
        context.log.settled(root)
        return []
    if not context.log.permit(root):
        editor.discard()
        return []
    context.log.settled(root)
    return editor.commit()


def _neighbourhood(changed: list[fx.Node], reach: int) -> list[fx.Node]:
    """The changed nodes and those behind them that a rewrite could look at them from."""
    found = dict.fromkeys(changed)
    front = changed
    for _ in range(reach):
        following: list[fx.Node] = []
        for node in front:
            if len(node.users) > _NEIGHBOURS:
                continue
            for user in node.users:
                if user not in found:
                    found[user] = None
                    following.append(user)
        if len(found) > _NEIGHBOURS * (reach + 1) + len(changed):
            break
        front = following
    return list(found)
