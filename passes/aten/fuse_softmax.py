"""`fuse-softmax` and `fuse-log-softmax` on ATen graphs: exp(x - max) over its sum, and the logarithm of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.rewriting import Refuse

from .reading import is_float
from .spelled import DIV, SUB, claim, goes_to, made_by, operands

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_EXP, _SUM, _LOG, _SOFTMAX = "aten.exp.default", "aten.sum.dim_IntList", "aten.log.default", "aten.softmax.int"
_WITHOUT = "the maximum is not taken off before exp, which overflows where softmax does not"


def run_softmax(context: AtenContext) -> None:
    """Write exp(x - max) / sum(exp(x - max)) as the operator softmax."""
    from graphopt.aten import drive

    drive(context, DIV, _softmax)


def run_log_softmax(context: AtenContext) -> None:
    """Write log(softmax(x)), and x - max - log(sum(exp(x - max))), as the operator log_softmax."""
    from graphopt.aten import drive

    drive(context, (_LOG,), _log_softmax)


def _softmax(quotient: Node, editor: AtenEditor) -> None:
    context = editor.context
    exp, total = operands(quotient, context)
    if made_by(exp, context, _EXP) is None or made_by(total, context, _SUM) is None or context.arguments(total)["self"] is not exp:
        return
    axis = _axis(total, context)
    found = _shifted(context.arguments(exp)["self"], context)
    if found is None:
        raise Refuse(_WITHOUT)
    x, nodes, along = found
    if axis is None or axis != along or not is_float(context, x):
        return
    claim([*nodes, exp, total], quotient, context)
    editor.replace(quotient, editor.call(_SOFTMAX, [x, axis]))


def _log_softmax(log: Node, editor: AtenEditor) -> None:
    context = editor.context
    source = context.arguments(log)["self"]
    if made_by(source, context, _SOFTMAX) is not None:
        given = context.arguments(source)
        if given["dtype"] is None and is_float(context, given["self"]):
            claim([source], log, context)
            editor.replace(log, editor.call("aten.log_softmax.int", [given["self"], given["dim"]]))
        return
    if made_by(source, context, _SUM) is None:
        return
    exp, last = context.arguments(source)["self"], goes_to(log, context, *SUB)
    if made_by(exp, context, _EXP) is None or last is None:
        return
    shifted = context.arguments(exp)["self"]
    if operands(last, context) != (shifted, log):
        return
    found = _shifted(shifted, context)
    if found is None:
        raise Refuse(_WITHOUT)
    x, nodes, along = found
    if _axis(source, context) != along or not is_float(context, x):
        return
    claim([*nodes, exp, source, log], last, context)
    editor.root = last
    editor.replace(last, editor.call("aten.log_softmax.int", [x, along]))


def _shifted(value: Any, context: AtenContext) -> tuple[Any, list[Node], int] | None:
    """x, the nodes of x - max(x), and the axis of the maximum, where a value is that."""
    minus = made_by(value, context, *SUB)
    x, largest = operands(minus, context) if minus is not None else (None, None)
    nodes = [minus]
    if context.op(largest) == "getitem" and largest.args[1] == 0:
        nodes.append(largest)
        largest = largest.args[0]
    if made_by(largest, context, "aten.amax.default", "aten.max.dim") is None or context.arguments(largest)["self"] is not x:
        return None
    axis = _axis(largest, context)
    return None if axis is None else (x, [*nodes, largest], axis)


def _axis(node: Node, context: AtenContext) -> int | None:
    """The one axis, counted from the front, that a reduction keeps with one element."""
    given = context.arguments(node)
    dims, rank = given["dim"], context.rank(given["self"])
    dims = [dims] if isinstance(dims, int) else dims
    if not rank or not dims or len(dims) != 1 or not given["keepdim"] or given.get("dtype") is not None:
        return None
    return dims[0] % rank
