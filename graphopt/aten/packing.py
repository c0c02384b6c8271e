"""Weights as torch's kernels for narrow types read them, which is a matter of the CPU that it runs on."""

from __future__ import annotations

import numpy as np
import torch


def packed_int4(integers: np.ndarray) -> torch.Tensor:
    """What `_weight_int4pack_mm_for_cpu` multiplies by, of integers uint8 [N, K] in 0 to 15; N a multiple of 16, K even.

    The order of the bytes depends on the instruction set: see :func:`instruction_set`.
    """
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(integers.astype(np.int32)), 1)


def instruction_set() -> str:
    """The instruction set that torch's kernels use on this machine, "AVX512"."""
    return torch.backends.cpu.get_cpu_capability()
