"""A batch normalization of an ATen graph read as what it is at inference: one multiplication and one addition a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.rewriting import Refuse

from ..algebra.arithmetic import bn_affine

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext

INFERENCE = "aten._native_batch_norm_legit_no_training.default"  # its first result is what it computes
PLAIN = "aten.batch_norm.default"
OPERATORS = (INFERENCE, PLAIN)


def output_of(node: Node, context: AtenContext) -> Node | None:
    """The node that holds what the normalization computes; None where nobody asks for it."""
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


def read_bn(node: Node, context: AtenContext, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add` of a normalization over `channels` channels; refuses one that is in training mode."""
    given = context.arguments(node)
    if context.op(node) == PLAIN and given["training"]:
        raise Refuse("it is in training mode")
    ones, zeros = np.ones(channels), np.zeros(channels)
    scale = ones if given["weight"] is None else _parameter(context, given["weight"], "the scale", channels)
    bias = zeros if given["bias"] is None else _parameter(context, given["bias"], "the bias", channels)
    if given["running_mean"] is None or given["running_var"] is None:
        raise Refuse("it has no running statistics")
    mean = _parameter(context, given["running_mean"], "the mean", channels)
    variance = _parameter(context, given["running_var"], "the variance", channels)
    return bn_affine(scale, bias, mean, variance, float(given["eps"]))


def tensors_of(node: Node, context: AtenContext) -> tuple[Node, ...]:
    """The placeholders of its parameters and statistics."""
    given = context.arguments(node)
    return tuple(n for n in (given[k] for k in ("weight", "bias", "running_mean", "running_var")) if n is not None)


def _parameter(context: AtenContext, node: Node, what: str, channels: int) -> np.ndarray:
    array = context.required_float(node, what)
    if array.shape != (channels,):
        raise Refuse(f"{what} does not fit the {channels} channels")
    return array
