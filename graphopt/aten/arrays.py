"""Tensors as numpy arrays and back, sharing memory where both have the type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

# Types that numpy has only by ml_dtypes: torch type, integer type of the same width, numpy type.
_CARRIED = {torch.bfloat16: (torch.int16, ml_dtypes.bfloat16)}
_BACK = {np.dtype(kind): (torch_type, carrier) for torch_type, (carrier, kind) in _CARRIED.items()}


def to_array(tensor: torch.Tensor) -> np.ndarray | None:
    """The elements of a dense tensor on the CPU, read only by agreement; None for a type that numpy does not have."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return None
    tensor = tensor.resolve_conj().resolve_neg().cpu()
    if tensor.dtype in _CARRIED:
        carrier, kind = _CARRIED[tensor.dtype]
        return tensor.view(carrier).numpy().view(kind)
    try:
        return tensor.numpy()
    except TypeError:
        return None


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor of an array's elements and type; it owns them unless the array is writable and contiguous.

    Raises:
        TypeError: torch has no such type.
    """
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype in _BACK:
        kind, _ = _BACK[array.dtype]
        return torch.from_numpy(array.view(np.int16)).view(kind)
    return torch.from_numpy(array)
