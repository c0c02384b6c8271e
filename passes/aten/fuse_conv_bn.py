"""`fuse-conv-bn` on ATen graphs: a batch normalization goes into the weight and the bias of what stands before it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from graphopt.rewriting import Refuse

from .batchnorm import OPERATORS, output_of, read_bn, tensors_of
from .linear import OPERATORS as LINEAR
from .linear import Linear, read

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_SIBLINGS = 64
_Made = dict[tuple[Any, ...], tuple["Node", "Node | None"]]


def run(context: AtenContext, max_growth_bytes: int) -> None:
    """Fold every one that can be."""
    from graphopt.aten import drive

    drive(context, OPERATORS, partial(_fuse, limit=max_growth_bytes, made={}))


def _fuse(bn: Node, editor: AtenEditor, limit: int, made: _Made) -> None:
    context = editor.context
    node = context.arguments(bn)["input"]
    if context.op(node) not in LINEAR:
        return
    y = output_of(bn, context)
    if y is None:
        return
    linear = read(node, context)
    context.only_user(node, "the output before it", bn)
    if linear.axis == -1 and context.rank(node) != 2:
        raise Refuse(f"of rank {context.rank(node)}, its channels are on axis 1, and those before it on the last")
    mul, shift = read_bn(bn, context, linear.channels)
    key = _key(linear, bn, context)
    if (earlier := _still_there(made.get(key), context)) is not None:
        editor.replace(y, linear.again(editor, *earlier, like=node))
        return
    if not _all_alike(linear, key, context):
        linear.guard_growth(context, limit)
    bias = linear.bias_array(context) * mul + shift
    needed = linear.bias is not None or bool(bias.any())
    weight = linear.weight_times_output(context, mul)
    new = linear.state(editor, like=node, weight=weight, bias=bias if needed else None, made_of=tensors_of(bn, context))
    editor.replace(y, new)
    stated = read(new, context)
    made[key] = stated.weight, stated.bias


def _key(linear: Linear, bn: Node, context: AtenContext) -> tuple[Any, ...]:
    """What the folded weight and bias depend on."""
    norm = context.arguments(bn)
    tensors = tuple(norm.get(name) for name in ("weight", "bias", "running_mean", "running_var"))
    epsilon = norm.get("eps", norm.get("epsilon"))
    return linear.kind, linear.group, linear.alpha, linear.beta, linear.weight, linear.bias, *tensors, epsilon


def _still_there(found: tuple[Node, Node | None] | None, context: AtenContext) -> tuple[Node, Node | None] | None:
    return found if found is not None and all(n is None or context.is_constant(n) for n in found) else None


def _all_alike(linear: Linear, key: tuple[Any, ...], context: AtenContext) -> bool:
    """Whether every user of the weight is such an operator before such a normalization: one copy serves all."""
    users = context.users(linear.weight)
    if len(users) > _SIBLINGS:
        return False
    for user in users:
        followers = context.users(user)
        if context.op(user) not in LINEAR or len(followers) != 1 or context.op(followers[0]) not in OPERATORS:
            return False
        try:
            other = read(user, context)
        except Refuse:
            return False
        if context.arguments(followers[0])["input"] is not user or _key(other, followers[0], context) != key:
            return False
    return True
