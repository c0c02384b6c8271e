"""What is certain of expressions over sizes, which may be 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sympy


def nonnegative(expression: sympy.Expr) -> bool:
    """Whether an expression is at least 0 for sizes of 0 and above; `is_nonnegative` would take them to be above 0."""
    if expression.is_Symbol:
        return True
    if expression.is_Number:
        return expression >= 0
    name = expression.func.__name__
    if name == "Max":
        return any(nonnegative(a) for a in expression.args)
    if name in ("Add", "Mul", "floor", "ceiling", "Min"):
        return all(nonnegative(a) for a in expression.args)
    if name == "Pow":
        return nonnegative(expression.args[0])
    if name == "Mod":
        return expression.args[1].is_Integer and expression.args[1] > 0
    return False


def positive(expression: sympy.Expr, named: set[str]) -> bool:
    """Whether an expression is above 0 where the symbols in `named` are."""
    if expression.is_Symbol:
        return expression.name in named
    if expression.is_Number:
        return expression > 0
    name = expression.func.__name__
    if name == "Add":
        return nonnegative(expression) and any(positive(a, named) for a in expression.args)
    if name == "Max":
        return any(positive(a, named) for a in expression.args)
    if name == "Mul":
        return all(positive(a, named) for a in expression.args)
    return name == "Pow" and positive(expression.args[0], named)
