"""GELU spelled out with Erf or Tanh, read from there.

    x (1 + erf(x / sqrt 2)) / 2
    x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2      the approximation, also with x drawn out of the sum

Hendrycks and Gimpel 2016, "Gaussian Error Linear Units". The factors may stand in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from graphopt.rewriting import Context, Match

from .reading import beside, claim, equals, factors, goes_to, halved, made_by, operand


def read(context: Context, match: Match) -> tuple[ir.Value, ir.Node] | None:
    """x and the last node of the GELU around an Erf or a Tanh, all of whose nodes are claimed; None where there is none."""
    curve = match.root
    inner = _of_erf if curve.op_type == "Erf" else _of_tanh
    for x, tail in _tails(context, curve):
        found = inner(context, curve.inputs[0], x)
        if found is not None:
            claim(match, [*found, *tail], tail[-1])
            return x, tail[-1]
    return None


def _tails(context: Context, curve: ir.Node) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """What x may be in x (1 + curve) / 2, and the nodes from 1 + curve on."""
    plus = goes_to(curve.outputs[0], "Add")
    if plus is None or not equals(beside(context, plus, curve.outputs[0]), 1.0):
        return
    total = plus.outputs[0]
    first = goes_to(total, "Mul", "Div")
    if first is None:
        return
    if halved(context, first, total):
        second = goes_to(first.outputs[0], "Mul")
        x = operand(second, first.outputs[0]) if second is not None else None
        if x is not None:
            yield x, [plus, first, second]
        return
    x = operand(first, total)
    if x is None or first.op_type != "Mul":
        return
    half = made_by(x, "Mul", "Div")
    for v in half.inputs if half is not None else ():
        if v is not None and halved(context, half, v):
            yield v, [half, plus, first]
    second = goes_to(first.outputs[0], "Mul", "Div")
    if halved(context, second, first.outputs[0]):
        yield x, [plus, first, second]


def _of_erf(context: Context, argument: ir.Value, x: ir.Value) -> list[ir.Node] | None:
    """The nodes of x / sqrt(2)."""
    node = made_by(argument, "Div", "Mul")
    constant = beside(context, node, x) if node is not None else None
    if constant is None or (node.op_type == "Div" and node.inputs[0] is not x):
        return None
    return [node] if equals(constant, math.sqrt(2.0) if node.op_type == "Div" else math.sqrt(0.5)) else None


def _of_tanh(context: Context, argument: ir.Value, x: ir.Value) -> list[ir.Node] | None:
    """The nodes of sqrt(2/pi) (x + 0.044715 x^3)."""
    leaves, nodes = factors(argument, x)
    scales = [v for v in leaves if equals(v, math.sqrt(2.0 / math.pi))]
    sums = [v for v in leaves if made_by(v, "Add") is not None and v is not x]
    powers = [v for v in leaves if v is x]
    if len(scales) != 1 or len(sums) != 1 or len(leaves) != 2 + len(powers) or len(powers) > 1:
        return None
    add = sums[0].producer()
    for first, second in (add.inputs, tuple(reversed(add.inputs))):
        if not (equals(first, 1.0) if powers else first is x):
            continue
        found = _monomial(second, x, power=2 if powers else 3)
        if found is not None and _scalars_keep_shape(context, [scales[0], first, *found[0]], x):
            return [*nodes, add, *found[1]]
    return None


def _monomial(value: ir.Value, x: ir.Value, power: int) -> tuple[list[ir.Value], list[ir.Node]] | None:
    """The constants and the nodes of 0.044715 x^power."""
    leaves, nodes = factors(value, x)
    constants, found = [], 0
    for leaf in leaves:
        raised = made_by(leaf, "Pow")
        if leaf is x:
            found += 1
        elif raised is not None and raised.inputs[0] is x and equals(raised.inputs[1], 2.0, 3.0):
            found += 2 if equals(raised.inputs[1], 2.0) else 3
            constants.append(raised.inputs[1])
            nodes.append(raised)
        elif equals(leaf, 0.044715):
            constants.append(leaf)
        else:
            return None
    scales = [v for v in constants if equals(v, 0.044715)]
    return (constants, nodes) if found == power and len(scales) == 1 else None


def _scalars_keep_shape(context: Context, values: Sequence[ir.Value], x: ir.Value) -> bool:
    rank = context.rank(x)
    return all(v is x or context.rank(v) == 0 or (rank is not None and (context.rank(v) or 0) <= rank) for v in values)
