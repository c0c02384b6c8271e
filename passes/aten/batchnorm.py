"""A batch normalization of an ATen graph read as what it is at inference: one multiplication and one addition a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.rewriting import Refuse

from ..algebra.arithmetic import bn_affine

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext

INFERENCE = "aten._native_batch_norm_legit_no_training.default"
PLAIN = "aten.batch_norm.default"
# The first of their results is what they compute. The last of them knows statistics of the batch alone.
SEVERAL = (
    INFERENCE, "aten.native_batch_norm.default", "aten.cudnn_batch_norm.default", "aten.miopen_batch_norm.default",
    "aten._batch_norm_no_update.default", "aten._native_batch_norm_legit_functional.default", "aten._native_batch_norm_legit.no_stats",
)  # fmt: skip
OPERATORS = (PLAIN, *SEVERAL)

_TENSORS = ("weight", "bias", "running_mean", "running_var")


def output_of(node: Node, context: AtenContext) -> Node | None:
    """The node that holds what the normalization computes; None where nobody asks for it. Refuses one in training mode."""
    guard_inference(node, context)
    if context.op(node) == PLAIN:
        return node
    found = None
    for user in node.users:
        if context.op(user) != "getitem":
            raise Refuse("its results are passed on together")
        if user.args[1] == 0:
            found = user
        elif user.users:
            raise Refuse("the statistics that it saves for training are used")
    return found


def norm_behind(value: Node, context: AtenContext) -> Node | None:
    """The normalization that a value is the result of, or None."""
    if context.op(value) == PLAIN:
        return value
    if context.op(value) != "getitem" or value.args[1] != 0 or context.op(value.args[0]) not in SEVERAL:
        return None
    return value.args[0]


def guard_inference(node: Node, context: AtenContext) -> None:
    """Refuse a normalization that takes its statistics from the batch."""
    given = context.arguments(node)
    if given.get("training", False):
        raise Refuse("it is in training mode")
    if given.get("running_mean") is None or given.get("running_var") is None:
        raise Refuse("it has no running statistics")


def read_bn(node: Node, context: AtenContext, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add` of a normalization over `channels` channels; refuses one that is in training mode."""
    guard_inference(node, context)
    given = context.arguments(node)
    neutral = np.ones(channels), np.zeros(channels)
    scale, bias, mean, variance = (
        neutral[i] if given[name] is None else _parameter(context, given[name], what, channels)
        for i, (name, what) in enumerate(zip(_TENSORS, ("the scale", "the bias", "the mean", "the variance")))
    )
    return bn_affine(scale, bias, mean, variance, epsilon_of(node, context))


def epsilon_of(node: Node, context: AtenContext) -> float:
    """What is added to the variance."""
    given = context.arguments(node)
    return float(given["eps"] if "eps" in given else given["epsilon"])


def tensors_of(node: Node, context: AtenContext) -> tuple[Node, ...]:
    """The placeholders of its parameters and statistics."""
    given = context.arguments(node)
    return tuple(n for n in (given.get(name) for name in _TENSORS) if n is not None)


def _parameter(context: AtenContext, node: Node, what: str, channels: int) -> np.ndarray:
    array = context.required_float(node, what)
    if array.shape != (channels,):
        raise Refuse(f"{what} does not fit the {channels} channels")
    return array
