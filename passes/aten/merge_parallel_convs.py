"""`merge-parallel-convs` on ATen graphs: convolutions of one input whose outputs are joined again are one convolution.

With a split behind, in place of the join, it pays in eager torch 2.13 only for a handful of channels (one thread, 0.90 to
1.06 times as fast from eight outputs on); with the join gone it is 1.04 to 2.1 times as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.rewriting import Refuse

from .linear import CONVOLUTION, CONVS, Linear, call_conv, folded_name, read

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

CAT = "aten.cat.default"
_ACTIVATIONS = frozenset(f"aten.{name}.default" for name in (
    "relu", "silu", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu", "elu", "gelu", "mish", "relu6",
))  # fmt: skip


@dataclass(frozen=True)
class _Branch:
    """A convolution and the activation that alone follows it, or None; equal keys may be merged."""

    conv: Node
    tail: Node | None
    key: tuple[Any, ...]


def run(context: AtenContext, max_growth_bytes: int) -> None:
    """Merge every run of such convolutions."""
    from graphopt.aten import drive

    drive(context, (CAT,), partial(_merge, limit=max_growth_bytes))


def _merge(root: Node, editor: AtenEditor, limit: int) -> None:
    context = editor.context
    given = context.arguments(root)
    values, rank = list(given["tensors"]), context.rank(root)
    if rank is None or rank < 3 or not isinstance(given["dim"], int) or given["dim"] % rank != 1:
        return
    runs = _runs([_branch(value, root, context) for value in values])
    if not runs:
        return
    for start, branches in reversed(runs):
        linears = [read(b.conv, context) for b in branches]
        for linear in linears:
            linear.guard_growth(context, limit)
        whole = len(branches) == len(values)
        new = _state(linears, editor, like=root if whole else None)
        if (tail := branches[0].tail) is not None:
            new = editor.call(context.op(tail), [new, *tail.args[1:]], tail.kwargs, like=root if whole else None)
        values[start : start + len(branches)] = [new]
    editor.replace(root, values[0] if len(values) == 1 else editor.call(CAT, [values, given["dim"]], like=root))


def _branch(value: Node, root: Node, context: AtenContext) -> _Branch | None:
    """The convolution behind one input of a join, used for that alone and once; None where it is another thing."""
    if list(value.users) != [root] or list(root.args[0]).count(value) != 1:
        return None
    conv, tail = value, None
    if context.op(value) in _ACTIVATIONS:
        conv, tail = value.args[0], value
        if list(getattr(conv, "users", ())) != [value]:
            return None
    operator = context.op(conv)
    if operator not in (*CONVS, CONVOLUTION):
        return None
    try:
        linear = read(conv, context)
    except Refuse:
        return None
    if linear.kind != "conv" or linear.group != 1:
        return None
    activation = None if tail is None else (context.op(tail), tail.args[1:], tuple(sorted(tail.kwargs.items())))
    key = linear.x, linear.shape[1:], linear.window(context), context.dtype(linear.weight), operator == CONVOLUTION, activation
    return _Branch(conv, tail, key)


def _runs(branches: list[_Branch | None]) -> list[tuple[int, list[_Branch]]]:
    """Runs of two or more neighbours with one key: where each begins, and its branches."""
    found: list[tuple[int, list[_Branch]]] = []
    for i, branch in enumerate(branches):
        if branch is not None and found and found[-1][0] + len(found[-1][1]) == i and found[-1][1][0].key == branch.key:
            found[-1][1].append(branch)
        elif branch is not None:
            found.append((i, [branch]))
    return [(start, run) for start, run in found if len(run) > 1]


def _state(linears: list[Linear], editor: AtenEditor, *, like: Node | None) -> Node:
    """State the one convolution."""
    context, first = editor.context, linears[0]
    window = first.window(context)
    context.require(window.begins == window.ends, "they pad one side more than the other")
    weight = np.concatenate([linear.weight_array(context) for linear in linears])
    held = [linear.weight for linear in linears]
    name = folded_name(context.program.name_of(first.weight) or "weight")
    new_weight, new_bias = editor.constant(weight, name, made_of=held), None
    biased = [linear.bias for linear in linears if linear.bias is not None]
    if biased:
        bias = np.concatenate([linear.bias_array(context) for linear in linears]).astype(weight.dtype)
        new_bias = editor.constant(bias, folded_name(context.program.name_of(biased[0]) or "bias"), made_of=biased)
    general = context.op(first.node) == CONVOLUTION
    return call_conv(editor, first.x, new_weight, new_bias, window, 1, like=like, general=general)
