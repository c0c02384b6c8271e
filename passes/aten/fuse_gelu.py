"""`fuse-gelu` on ATen graphs: x (1 + erf(x / sqrt 2)) / 2, and its approximation by tanh."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .reading import is_float
from .spelled import ADD, DIV, MUL, POW, claim, goes_to, is_number, made_by, number, operands, other, scaled_by

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_ERF, _TANH = "aten.erf.default", "aten.tanh.default"


def run(context: AtenContext) -> None:
    """Write each as the operator gelu."""
    from graphopt.aten import drive

    drive(context, (_ERF, _TANH), _rewrite)


def _rewrite(curve: Node, editor: AtenEditor) -> None:
    context = editor.context
    exact = context.op(curve) == _ERF
    argument = context.arguments(curve)["self"]
    for x, tail in _tails(curve, context):
        inner = _of_erf(argument, x, context) if exact else _of_tanh(argument, x, context)
        if inner is None or not is_float(context, x):
            continue
        last = tail[-1]
        claim([curve, *inner, *tail[:-1]], last, context)
        editor.root = last
        editor.replace(last, editor.call("aten.gelu.default", [x], {} if exact else {"approximate": "tanh"}))
        return


def _tails(curve: Node, context: AtenContext) -> Iterator[tuple[Any, list[Node]]]:
    """What x may be in x (1 + curve) / 2, and the nodes from 1 + curve on."""
    plus = goes_to(curve, context, *ADD)
    if plus is None or not is_number(other(plus, curve, context), context, 1.0):
        return
    first = goes_to(plus, context, *MUL, *DIV)
    if first is None:
        return
    if scaled_by(first, plus, context) == 0.5:
        second = goes_to(first, context, *MUL)
        if second is not None and other(second, first, context) is not None:
            yield other(second, first, context), [plus, first, second]
        return
    x = other(first, plus, context) if made_by(first, context, *MUL) is not None else None
    if context.dtype(x) is None:
        return
    if made_by(x, context, *MUL, *DIV) is not None:
        for inner in operands(x, context):
            if context.dtype(inner) is not None and scaled_by(x, inner, context) == 0.5:
                yield inner, [x, plus, first]
    second = goes_to(first, context, *MUL, *DIV)
    if second is not None and scaled_by(second, first, context) == 0.5:
        yield x, [plus, first, second]


def _of_erf(argument: Any, x: Any, context: AtenContext) -> list[Node] | None:
    """The nodes of x / sqrt(2)."""
    if made_by(argument, context, *DIV) is not None:
        a, b = operands(argument, context)
        return [argument] if a is x and is_number(b, context, math.sqrt(2.0)) else None
    if made_by(argument, context, *MUL) is not None:
        return [argument] if is_number(other(argument, x, context), context, math.sqrt(0.5), 1 / math.sqrt(2.0)) else None
    return None


def _of_tanh(argument: Any, x: Any, context: AtenContext) -> list[Node] | None:
    """The nodes of sqrt(2/pi) (x + 0.044715 x^3)."""
    if made_by(argument, context, *MUL) is None:
        return None
    for total in operands(argument, context):
        if made_by(total, context, *ADD) is None or not is_number(other(argument, total, context), context, math.sqrt(2.0 / math.pi)):
            continue
        cubic = other(total, x, context)
        if made_by(cubic, context, *MUL) is None:
            continue
        for power in operands(cubic, context):
            if not is_number(other(cubic, power, context), context, 0.044715) or number(power, context) is not None:
                continue
            if made_by(power, context, *POW) is not None and operands(power, context)[0] is x and is_number(
                operands(power, context)[1], context, 3.0
            ):
                return [argument, total, cubic, power]
    return None
