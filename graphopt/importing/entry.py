"""The way in: whatever holds an ONNX model becomes a torch.fx.GraphModule."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.extras import require_torch
from graphopt.formats import load_model
from graphopt.model import Model

if TYPE_CHECKING:
    import torch


def to_torch(model: str | os.PathLike | Model | ir.Model) -> torch.fx.GraphModule:
    """The model as a torch.fx.GraphModule with one call for each ONNX node, in evaluation mode.

    It takes the model's inputs in their order and returns its output, or a tuple of its outputs. Float weights are
    parameters, other tensors buffers. ``module.meta["onnx"]`` holds the names: ``inputs`` and ``outputs`` (lists, as in
    the ONNX model), and ``tensors`` (ONNX name -> name of the parameter or buffer). Shapes stay dynamic; shape
    arithmetic is done on Python integers, so torch.export sees it as arithmetic on symbolic sizes.

    Raises:
        InputError: torch is not installed, the model cannot be read, or it holds operators that cannot be imported,
            all of which are listed.
    """
    require_torch("imports into torch")
    from graphopt.importing.build import build

    if isinstance(model, ir.Model):
        return build(model.clone(), "the model")
    if isinstance(model, Model):
        return build(model.graph.clone(), str(model.path or "the model"))
    return build(load_model(model).graph, str(model))
