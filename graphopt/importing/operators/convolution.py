"""Convolutions over one, two or three spatial axes, and transposed ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.importing.table import operator
from graphopt.importing.values import NotImportable
from graphopt.importing.windows import flat, windows

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@operator("Conv")
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Padding that torch's convolution does not take, the two sides being unlike, is put on first."""
    rank = _rank(x)
    found = windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    padding: Any = found.heads
    if not found.symmetric:
        x, padding = functional.pad(x, found.padding), (0,) * rank
    return _CONV[rank](x, w, b, found.strides, padding, found.dilations, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Pads cut the full result. An ``output_shape`` says how much; what it has more is zeros (and bias) at the end."""
    rank = _rank(x)
    strides, dilations = tuple(strides or [1] * rank), tuple(dilations or [1] * rank)
    more = tuple(output_padding or [0] * rank)
    call = _TRANSPOSED[rank]
    full = [(d - 1) * s + (k - 1) * e + 1 for d, k, s, e in zip(x.shape[2:], w.shape[2:], strides, dilations, strict=True)]
    if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = [d * s for d, s in zip(x.shape[2:], strides, strict=True)]
    if output_shape is None:
        pads = list(pads) if pads and auto_pad != "VALID" else [0] * 2 * rank
        heads, tails = pads[:rank], pads[rank:]
        fits = all(m < max(s, e) or m == 0 for m, s, e in zip(more, strides, dilations, strict=True))
        if heads == tails and fits:
            return call(x, w, b, strides, heads, more, group, dilations)
        cut = [(-head, m - tail) for head, tail, m in zip(heads, tails, more, strict=True)]
    else:
        cut = []
        for size, whole, m in zip(output_shape[-rank:], full, more, strict=True):
            total = torch.sym_max(whole + m - size, 0)
            head = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            cut.append((-head, size - whole + head))
    y = call(x, w, None, strides, 0, 0, group, dilations)
    y = functional.pad(y, flat([c[0] for c in cut], [c[1] for c in cut]))
    return y if b is None else y + b.reshape([-1] + [1] * rank)


def _rank(x: Tensor) -> int:
    rank = x.dim() - 2
    if rank not in _CONV:
        raise NotImportable(f"a convolution over {rank} spatial axes is not supported, torch has those over 1 to 3")
    return rank
