"""The window that a convolution or a pooling of an ATen graph slides: its size, steps, padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.rewriting import Refuse


@dataclass(frozen=True)
class Window:
    """One number a spatial axis each."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def padded(self) -> bool:
        """Whether it pads anywhere."""
        return any((*self.begins, *self.ends))

    @property
    def pointwise(self) -> bool:
        """Whether it looks at one place at a time, and at each."""
        return not self.padded and all(n == 1 for n in (*self.kernel, *self.stride))


def window_of(given: Mapping[str, Any], kernel: Sequence[int]) -> Window:
    """The window of an operator with these arguments, by the names of its schema."""
    count = len(kernel)
    stride = per_axis(given.get("stride") or 1, count) if given.get("stride") != [] else tuple(kernel)
    dilation = per_axis(given.get("dilation", 1), count)
    padding = given.get("padding", 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        begins = tuple(t // 2 for t in total)
        ends = tuple(t - b for t, b in zip(total, begins))
    else:
        begins = ends = per_axis(0 if padding == "valid" else padding, count)
    return Window(tuple(kernel), stride, begins, ends, dilation)


def per_axis(value: Any, count: int) -> tuple[int, ...]:
    """A number, or a list of one or of `count` numbers, as `count` numbers."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if any(not isinstance(v, int) for v in values):
        raise Refuse("a size of its window is computed")
    if len(values) not in (1, count):
        raise Refuse("its window does not fit the spatial axes")
    return values * count if len(values) == 1 else values
