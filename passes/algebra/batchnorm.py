"""BatchNormalization read as what it is at inference: one multiplication and one addition a channel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, guards

from .arithmetic import bn_affine

_EPSILON = np.float32(1e-5)  # the default is a float32, which double precision tells from 1e-5
_PARAMETERS = ("the scale", "the bias", "the mean", "the variance")


def read_bn(node: ir.Node, context: Context, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """`mul` and `add` of a BatchNormalization over `channels` channels; refuses one that is not at inference."""
    guard_inference(node, context)
    epsilon = float(guards.attribute(node, "epsilon", _EPSILON))
    scale, bias, mean, variance = (_parameter(v, what, channels) for v, what in zip(node.inputs[1:5], _PARAMETERS))
    return bn_affine(scale, bias, mean, variance, epsilon)


def guard_inference(node: ir.Node, context: Context) -> None:
    """Refuse a BatchNormalization that takes its statistics from the batch, or whose statistics are asked for."""
    opset = context.opset(node)
    guards.require(opset >= 6, "BatchNormalization before opset 6 is not known")
    if opset >= 14:
        guards.require(not guards.attribute(node, "training_mode", 0), "it is in training mode")
        guards.unused_outputs(node)
        return
    if opset == 6:
        guards.require(bool(guards.attribute(node, "is_test", 0)), "it is in training mode")
    if opset < 9:
        guards.require(bool(guards.attribute(node, "spatial", 1)), "it normalizes each place by itself, not each channel")
    # Before opset 14 it is the presence of the further outputs that means training.
    guards.require(not any(v.name for v in node.outputs[1:]), "it is in training mode")


def _parameter(value: ir.Value | None, what: str, channels: int) -> np.ndarray:
    array = guards.float_constant(value, what)
    guards.require(array.shape == (channels,), f"{what} does not fit the {channels} channels")
    return array
