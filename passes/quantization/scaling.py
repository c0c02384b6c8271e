"""Scales moved from values into the weights that read them: x W = (x / s) (s W), one factor a channel.

The division goes into whatever computed the values, where it can: weights, or the scale of a normalization.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Refuse, guards, same_domain

from ..algebra.linear import LINEAR, Linear, read
from ..algebra.movement import Affine
from ..algebra.plans import Nothing, Plan, back


@dataclass(frozen=True)
class Group:
    """A value and the linear operators that read it.

    Attributes:
        value: float32, in the main graph.
        axis: of its channels, counted from the front for convolutions, -1 for products of matrices.
        readers: in the order of the graph.
        others: whether something else reads the value too, or it is a graph output.
    """

    value: ir.Value
    axis: int
    readers: tuple[ir.Node, ...]
    others: bool


def find_groups(context: Context) -> list[Group]:
    """The values of the main graph that linear operators with constant weights read, in the order of the graph."""
    found: dict[ir.Value, dict[ir.Node, int]] = {}
    for node in context.model.graph:
        if node.op_type not in LINEAR or not same_domain(node.domain, "") or len(node.inputs) < 2:
            continue
        value = node.inputs[0]
        if value is None or value.const_value is not None or context.dtype(value) != ir.DataType.FLOAT:
            continue
        if node.op_type == "Gemm" and guards.attribute(node, "transA", 0):
            continue
        try:
            read(node, context)
        except Refuse:
            continue
        found.setdefault(value, {})[node] = 1 if "Conv" in node.op_type else -1
    groups = []
    for value, readers in found.items():
        if len(axes := set(readers.values())) > 1:
            continue
        users = [usage.node for usage in value.uses()]
        others = value.is_graph_output() or any(user not in readers for user in users) or len(users) != len(readers)
        groups.append(Group(value, axes.pop(), tuple(readers), others))
    return groups


def by_input(linear: Linear) -> np.ndarray:
    """A weight [groups, inputs of a group, outputs of a group, taps], in its own type."""
    weight = guards.float_constant(linear.weight, "the weight")
    if linear.node.op_type == "Conv":
        shape = linear.group, weight.shape[0] // linear.group, weight.shape[1], -1
        return weight.reshape(shape).transpose(0, 2, 1, 3)
    if linear.node.op_type == "ConvTranspose":
        return weight.reshape(linear.group, weight.shape[0] // linear.group, weight.shape[1], -1)
    return (weight.T if linear.transposed else weight)[None, :, :, None]


def moved(group: Group, scale: np.ndarray, context: Context, *, insert: bool, limit: int) -> bool:
    """Whether the changes of `move` were made: one application; a refusal, or one that is held back, changes nothing."""
    root = group.readers[0]
    try:
        editor = move(group, scale, context, insert=insert, limit=limit)
    except Refuse as refusal:
        context.log.refuse(root, refusal.reason)
        return False
    if not context.log.permit(root):
        editor.discard()
        return False
    context.log.settled(root)
    editor.commit()
    return True


def move(group: Group, scale: np.ndarray, context: Context, *, insert: bool, limit: int) -> Editor:
    """State that a value is divided by a scale, one factor a channel, and that the weights that read it are multiplied.

    insert: whether a Mul may stand in front of the readers where the value's source cannot take the scale.
    limit: the largest weight, in bytes, that is copied because others use it too.

    Returns:
        The changes, to be committed or discarded.

    Raises:
        Refuse: it cannot be done.
    """
    editor = Editor(context, Match(group.readers[0], []))
    try:
        _state(group, scale, editor, insert, limit)
        editor.check()
    except Refuse:
        editor.discard()
        raise
    return editor


def _state(group: Group, scale: np.ndarray, editor: Editor, insert: bool, limit: int) -> None:
    context = editor.context
    readers = [read(node, context) for node in group.readers]
    rank = context.rank(group.value)
    guards.require(rank is not None, "the rank of its input is not known")
    assert rank is not None
    shape = [1] * rank
    shape[group.axis] = scale.size
    try:
        plan = Plan(factors=[])
        back(group.value, Affine.of(1 / scale.reshape(shape), np.zeros(())), group.readers, group.readers[0], plan, context)
        guards.require(not {linear.node for linear, *_ in plan.outputs} & set(group.readers), "its input depends on its own weights")
        plan.state(editor, limit)
    except (Nothing, Refuse) as error:
        why = error.reason if isinstance(error, Refuse) else _source(group.value)
        if not insert:
            raise Refuse(f"there is nothing to fold the scale of {group.value.name!r} into: {why}") from None
        _drop_statements(editor)
        tail = shape[1:] if group.axis == 1 else [scale.size]
        factor = editor.constant((1 / scale).astype(np.float32).reshape(tail), f"{group.value.name}_smoothing")
        smoothed = editor.node("Mul", [group.value, factor], name=f"{group.value.name}_smoothed", like=group.value)
        for node in group.readers:
            editor.set_input(node, 0, smoothed)
    for linear in readers:
        linear.guard_growth(limit)
        linear.update(editor, weight=linear.weight_times_input(scale), bias=None)


def _drop_statements(editor: Editor) -> None:
    editor.discard()
    for stated in (editor.created, editor.initializers, editor.replacements, editor.dropped_uses, editor.updates):
        stated.clear()


def _source(value: ir.Value) -> str:
    producer = value.producer()
    return "it is an input of the graph" if producer is None else f"it comes from {producer.op_type}"


def positive(scale: np.ndarray, known: Iterable[np.ndarray]) -> np.ndarray:
    """A scale that is 1 in channels where one of the known magnitudes is zero, and finite and positive everywhere."""
    usable = np.isfinite(scale) & (scale > 0)
    for magnitude in known:
        usable &= magnitude > 0
    return np.where(usable, scale, 1.0)


def only_source(group: Group, context: Context) -> Linear:
    """The linear operator that alone gives a value, channel by channel; refuses where there is none, or more than one."""
    guards.require(not group.others, f"{group.value.name!r} is also read by something else, or a graph output")
    channels = read(group.readers[0], context).inputs
    rank = context.rank(group.value)
    guards.require(rank is not None, "the rank of its input is not known")
    shape = [1] * rank  # type: ignore[operator]
    shape[group.axis] = channels
    told_apart = np.arange(1.0, channels + 1)
    plan = Plan(factors=[])
    try:
        back(group.value, Affine.of(told_apart.reshape(shape), np.zeros(())), group.readers, group.readers[0], plan, context)
    except Nothing:
        raise Refuse(f"there is no layer before it: {_source(group.value)}") from None
    guards.require(len(plan.outputs) == 1 and plan.outputs[0][0].node not in group.readers, "there is not one layer before it")
    linear, mul, _ = plan.outputs[0]
    guards.require(mul.shape == told_apart.shape and bool((mul == told_apart).all()), "channels are in another order before it")
    return linear
