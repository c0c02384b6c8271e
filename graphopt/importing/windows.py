"""What convolutions and pools share: windows that move over the spatial axes, and the padding that they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphopt.importing.values import NotImportable


@dataclass(frozen=True)
class Windows:
    """The windows of one operator, a number for each spatial axis: sizes, strides, dilations, padding before and after."""

    kernel: tuple[Any, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    heads: tuple[Any, ...]
    tails: tuple[Any, ...]

    @property
    def symmetric(self) -> bool:
        """Whether torch's own padding will do: the same before and after."""
        return all(isinstance(a, int) and isinstance(b, int) and a == b >= 0 for a, b in zip(self.heads, self.tails, strict=True))

    @property
    def padding(self) -> list[Any]:
        """For torch.nn.functional.pad: the last axis first."""
        return flat(self.heads, self.tails)

    def span(self, axis: int) -> Any:
        """How many elements a window reaches over."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def outputs(self, dims: Sequence[Any], ceil_mode: int) -> list[Any]:
        """How many windows there are along each axis. With ``ceil_mode`` the last may reach beyond the padding, if it
        begins within the input or the padding before it."""
        found = []
        for i, dim in enumerate(dims):
            room = dim + self.heads[i] + self.tails[i] - self.span(i)
            if ceil_mode:
                number = -(-room // self.strides[i]) + 1
                found.append(torch.sym_min(number, -(-(dim + self.heads[i]) // self.strides[i])))
            else:
                found.append(room // self.strides[i] + 1)
        return found

    def exact(self, dims: Sequence[Any], ceil_mode: int) -> Windows:
        """The same windows with the padding after the input changed so that they come out even."""
        outputs = self.outputs(dims, ceil_mode)
        tails = [(o - 1) * self.strides[i] + self.span(i) - dims[i] - self.heads[i] for i, o in enumerate(outputs)]
        return Windows(self.kernel, self.strides, self.dilations, self.heads, tuple(tails))


def flat(heads: Sequence[Any], tails: Sequence[Any]) -> list[Any]:
    """Padding as torch.nn.functional.pad takes it."""
    return [p for pair in reversed(list(zip(heads, tails, strict=True))) for p in pair]


def windows(
    dims: Sequence[Any],
    kernel: Sequence[Any],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> Windows:
    """The windows that an operator's attributes ask for over spatial axes of sizes ``dims``."""
    rank = len(dims)
    strides = tuple(strides or [1] * rank)
    dilations = tuple(dilations or [1] * rank)
    if auto_pad in ("NOTSET", "", "VALID"):
        pads = tuple(pads or [0] * 2 * rank) if auto_pad != "VALID" else (0,) * 2 * rank
        return Windows(tuple(kernel), strides, dilations, pads[:rank], pads[rank:])
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise NotImportable(f"auto_pad '{auto_pad}' is unknown")
    heads, tails = [], []
    for i, dim in enumerate(dims):
        outputs = -(-dim // strides[i])
        missing = torch.sym_max((outputs - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - dim, 0)
        less = missing // 2
        heads.append(less if auto_pad == "SAME_UPPER" else missing - less)
        tails.append(missing - less if auto_pad == "SAME_UPPER" else less)
    return Windows(tuple(kernel), strides, dilations, tuple(heads), tuple(tails))
