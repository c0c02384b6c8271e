"""`eliminate-idempotent` and `eliminate-not` on ATen graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .reading import applied_to

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_REPEATED = tuple(f"aten.{n}.default" for n in ("relu", "abs", "ceil", "floor", "round", "sign", "trunc"))  # f(f(x)) = f(x)
_UNDONE = ("aten.neg.default", "aten.bitwise_not.default", "aten.logical_not.default")  # f(f(x)) = x
_TWICE = tuple(
    f"aten.{n}" for n in ("maximum.default", "minimum.default", "bitwise_and.Tensor", "bitwise_or.Tensor", "logical_and.default",
                          "logical_or.default")
)  # fmt: skip
_WHERE = "aten.where.self"
_TURNED = {  # by where a number stands in the place of a tensor
    _WHERE: _WHERE, "aten.where.ScalarOther": "aten.where.ScalarSelf", "aten.where.ScalarSelf": "aten.where.ScalarOther",
    "aten.where.Scalar": "aten.where.Scalar",
}  # fmt: skip
_NOT = ("aten.logical_not.default", "aten.bitwise_not.default")
_MOST = 64


def run(context: AtenContext) -> None:
    """Remove what repeats or undoes the operator before it."""
    from graphopt.aten import drive

    drive(context, (*_REPEATED, *_UNDONE, *_TWICE, _WHERE), _rewrite)


def run_not(context: AtenContext) -> None:
    """Let where(not c, a, b) be where(c, b, a), where nothing else needs what is negated."""
    from graphopt.aten import drive

    drive(context, tuple(_TURNED), _turn)


def _rewrite(node: Node, editor: AtenEditor) -> None:
    context, operator = editor.context, editor.context.op(node)
    given = list(context.arguments(node).values())
    if operator in _REPEATED:
        x = given[0] if context.op(given[0]) == operator else None
        if operator == "aten.abs.default" and context.op(given[0]) == "aten.neg.default":
            editor.replace(node, editor.call(operator, [applied_to(given[0], context)]))
            return
    elif operator in _UNDONE:
        x = applied_to(given[0], context) if context.op(given[0]) == operator else None
    else:
        a, b = given[-2:]
        x = a if a is b else None
    if x is not None and context.alike(node, x):  # not so for the logical ones of numbers, which give bools
        editor.replace(node, x)


def _turn(node: Node, editor: AtenEditor) -> None:
    context = editor.context
    condition, a, b = context.arguments(node).values()
    if context.op(condition) not in _NOT or len(condition.users) > _MOST or context.is_output(condition):
        return
    if any(context.op(u) not in _TURNED or u.args[1] is condition or u.args[2] is condition for u in condition.users):
        return  # the negation would stay: then nothing is gained
    plain = applied_to(condition, context)
    if context.dtype(plain) == "bool":
        editor.replace(node, editor.call(_TURNED[context.op(node)], [plain, b, a]))
