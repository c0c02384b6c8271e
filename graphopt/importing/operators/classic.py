"""Operators of ai.onnx.ml that are plain arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.importing.table import operator


@operator("Scaler", domain="ai.onnx.ml")
def scaler(x: Tensor, *, offset: list[float], scale: list[float]) -> Tensor:
    """A float32 for each feature, or one for all; the result is float32 whatever comes in."""
    shift, factor = (torch.tensor(values, dtype=torch.float32, device=x.device) for values in (offset, scale))
    return (x.to(torch.float32) - shift) * factor
