"""Expressions of sizes in a file: torch evaluates them as Python, so they must be arithmetic and nothing more."""

from __future__ import annotations

import ast
import builtins
import re

_WORD = re.compile(r"[\w.+-]*")
_NODES = (
    ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Call, ast.keyword, ast.Constant, ast.Name,
    ast.Attribute, ast.Subscript, ast.Tuple, ast.Load, ast.boolop, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
#: What a guard asks of a tensor: `L['x'].size()[0] <= 50`.
_ASKED = frozenset({"size", "stride", "storage_offset", "dim", "numel"})
_FUNCTIONS = frozenset({"abs", "bool", "float", "int", "max", "min", "round", "sum"})


def is_arithmetic(text: str) -> bool:
    """Whether an expression does nothing but compute with sizes: numbers, symbols, and calls of functions of them.

    Python's built-in functions, attributes but a tensor's sizes, and strings but names are none of it.
    """
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _NODES) and _allowed(node) for node in ast.walk(tree))


def _allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, bytes) and (not isinstance(node.value, str) or _WORD.fullmatch(node.value) is not None)
    if isinstance(node, ast.Name):
        return not node.id.startswith("_") and (node.id in _FUNCTIONS or not hasattr(builtins, node.id))
    if isinstance(node, ast.Attribute):
        of_math = isinstance(node.value, ast.Name) and node.value.id == "math" and not node.attr.startswith("_")
        return of_math or node.attr in _ASKED
    return True
