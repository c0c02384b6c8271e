"""`fuse-hardswish` and `fuse-hardsigmoid` on ATen graphs: relu6(x + 3) / 6, times x or not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .reading import is_float
from .spelled import ADD, DIV, MUL, claim, goes_to, is_number, made_by, operands, other, scaled_by

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_HARDSIGMOID = "aten.hardsigmoid.default"
_CLIPS = {"aten.clamp.default": ("min", "max"), "aten.hardtanh.default": ("min_val", "max_val"), "aten.relu6.default": None}


def run_hardswish(context: AtenContext) -> None:
    """Write x relu6(x + 3) / 6, and x hardsigmoid(x), as the operator hardswish."""
    from graphopt.aten import drive

    drive(context, (*_CLIPS, _HARDSIGMOID), _hardswish)


def run_hardsigmoid(context: AtenContext) -> None:
    """Write relu6(x + 3) / 6 as the operator hardsigmoid."""
    from graphopt.aten import drive

    drive(context, tuple(_CLIPS), _hardsigmoid)


def _hardswish(node: Node, editor: AtenEditor) -> None:
    context = editor.context
    if context.op(node) == _HARDSIGMOID:
        x, last = context.arguments(node)["self"], goes_to(node, context, *MUL)
        if last is None or other(last, node, context) is not x:
            return
        nodes = [node]
    else:
        x, plus = _shifted(node, context)
        tail = _times_sixth(node, x, context) if plus is not None else None
        if tail is None:
            return
        nodes, last = [plus, node, *tail[:-1]], tail[-1]
    _state("aten.hardswish.default", x, nodes, last, editor)


def _hardsigmoid(clip: Node, editor: AtenEditor) -> None:
    context = editor.context
    x, plus = _shifted(clip, context)
    last = goes_to(clip, context, *MUL, *DIV) if plus is not None else None
    if last is not None and _is_sixth(last, clip, context):
        _state(_HARDSIGMOID, x, [plus, clip], last, editor)


def _state(operator: str, x: Any, nodes: list[Any], last: Node, editor: AtenEditor) -> None:
    context = editor.context
    if not is_float(context, x) or context.dtype(last) != context.dtype(x):
        return
    claim(nodes, last, context)
    editor.root = last
    editor.replace(last, editor.call(operator, [x]))


def _shifted(clip: Node, context: AtenContext) -> tuple[Any, Node | None]:
    """x and x + 3, where that is clipped to [0, 6]."""
    given, bounds = context.arguments(clip), _CLIPS[context.op(clip)]
    plus = made_by(given["self"], context, *ADD)
    if plus is None or (bounds is not None and [given[b] for b in bounds] != [0, 6]):
        return None, None
    for x in operands(plus, context):
        if context.dtype(x) is not None and is_number(other(plus, x, context), context, 3.0):
            return x, plus
    return None, None


def _times_sixth(clip: Node, x: Any, context: AtenContext) -> list[Node] | None:
    """The operators behind a clip that multiply it by x / 6, in any order."""
    first = goes_to(clip, context, *MUL, *DIV)
    if first is None:
        return None
    if _is_sixth(first, clip, context):
        second = goes_to(first, context, *MUL)
        return [first, second] if second is not None and other(second, first, context) is x else None
    if made_by(first, context, *MUL) is None:
        return None
    factor = other(first, clip, context)
    if factor is x:
        second = goes_to(first, context, *MUL, *DIV)
        return [first, second] if second is not None and _is_sixth(second, first, context) else None
    return [factor, first] if made_by(factor, context, *MUL, *DIV) is not None and _is_sixth(factor, x, context) else None


def _is_sixth(node: Node, x: Any, context: AtenContext) -> bool:
    """Whether a node computes x / 6, which exporters write with seven digits, too."""
    factor = scaled_by(node, x, context)
    return factor is not None and math.isclose(factor, 1 / 6, rel_tol=3e-7)
