"""Which channels must go together: places of axes of values, tied by the operators between them.

Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", with ties between single places instead of layers, so that
Concat, Split, Flatten, depthwise convolutions and attention heads need no special case. A place is one index of one
axis of one value; a set of tied places is cut as a whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from graphopt.rewriting import Context

_TOO_LONG = 1 << 16  # places of one axis; a longer one is no axis of channels


class Places:
    """The places of all axes that were asked for, as a union-find; some are fixed, each with a reason."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.axes: dict[tuple[ir.Value, int], range] = {}
        self._parent: list[int] = []
        self._fixed: dict[int, str] = {}
        self._dims: dict[ir.Value, tuple[int | str, ...] | None] = {}

    # --- places -------------------------------------------------------------------------------------------------

    def dims(self, value: ir.Value) -> tuple[int | str, ...] | None:
        """The shape of a value; None where the rank is not known."""
        if value not in self._dims:
            self._dims[value] = self.context.dims(value)
        return self._dims[value]

    def of(self, value: ir.Value, axis: int) -> range | None:
        """The places of an axis, counted from the end where negative; None where it has no fixed length."""
        dims = self.dims(value)
        if dims is None or not -len(dims) <= axis < len(dims):
            return None
        axis %= len(dims)
        size = dims[axis]
        if not isinstance(size, int) or not 0 < size <= _TOO_LONG:
            return None
        found = self.axes.get((value, axis))
        if found is None:
            start = len(self._parent)
            found = self.axes[value, axis] = range(start, start + size)
            self._parent.extend(found)
        return found

    def root(self, place: int) -> int:
        """What stands for the set of a place."""
        parent = self._parent
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    # --- ties ---------------------------------------------------------------------------------------------------

    def tie(self, a: Iterable[int], b: Iterable[int]) -> None:
        """Tie places one by one."""
        for x, y in zip(a, b, strict=True):
            first, second = self.root(x), self.root(y)
            if first == second:
                continue
            low, high = min(first, second), max(first, second)
            self._parent[high] = low
            if high in self._fixed:
                self._fixed.setdefault(low, self._fixed[high])

    def tie_axes(self, a: ir.Value, axis_a: int, b: ir.Value, axis_b: int, why: str) -> None:
        """Tie two axes of one length place by place; where only one has a known length, it is fixed because of `why`."""
        first, second = self.of(a, axis_a), self.of(b, axis_b)
        if first is not None and second is not None and len(first) == len(second):
            self.tie(first, second)
            return
        self.fix(a, axis_a, why)
        self.fix(b, axis_b, why)

    def fix(self, value: ir.Value, axis: int, why: str) -> None:
        """Let no place of an axis be cut."""
        for place in self.of(value, axis) or ():
            self.fix_place(place, why)

    def fix_all(self, values: Iterable[ir.Value | None], why: str) -> None:
        """Let no place of any axis of some values be cut."""
        for value in values:
            dims = None if value is None else self.dims(value)
            for axis in range(len(dims or ())):
                self.fix(value, axis, why)  # type: ignore[arg-type]

    def fix_place(self, place: int, why: str) -> None:
        """Let one place, and what is tied to it now or later, not be cut."""
        self._fixed.setdefault(self.root(place), why)

    def reason(self, place: int) -> str | None:
        """Why a place is fixed; None where it may be cut."""
        return self._fixed.get(self.root(place))

    # --- what operators do --------------------------------------------------------------------------------------

    def alike(self, a: ir.Value, b: ir.Value, why: str, *, but: Sequence[int] = ()) -> None:
        """Tie all axes of two values of one shape, those of `but` (from 0) excepted."""
        dims = self.dims(a)
        if dims is None or len(dims) != len(self.dims(b) or ()):
            self.fix_all([a, b], why)
            return
        for axis in range(len(dims)):
            if axis not in but:
                self.tie_axes(a, axis, b, axis, why)

    def broadcast(self, inputs: Sequence[ir.Value], output: ir.Value, why: str) -> None:
        """Tie the axes of operands to those of the result that they line up with; an axis of length 1 is stretched."""
        dims = self.dims(output)
        if dims is None or any(self.dims(v) is None for v in inputs):
            self.fix_all([*inputs, output], why)
            return
        for value in inputs:
            own = self.dims(value) or ()
            for back in range(1, len(own) + 1):
                if own[-back] != 1 or dims[-back] == 1:
                    self.tie_axes(value, -back, output, -back, why)

    def regrouped(self, x: ir.Value, y: ir.Value, why: str) -> bool:
        """Tie the axes of a value and of what a Reshape makes of it.

        Axes that stay are tied place by place. Where one axis becomes several, or several one, the first of the
        several is tied to blocks of the one: a head to its channels, a channel to its pixels. The rest of the several
        is fixed. Returns False, with everything fixed, where the two cannot be lined up.
        """
        a, b = self.dims(x), self.dims(y)
        segments = None if a is None or b is None else line_up(a, b)
        if segments is None:
            self.fix_all([x, y], why)
            return False
        for left, right in segments:
            if len(left) == 1 and len(right) == 1:
                self.tie_axes(x, left[0], y, right[0], why)
            elif len(left) == 1 and right:
                self._blocks(x, left[0], y, right, why)
            elif len(right) == 1 and left:
                self._blocks(y, right[0], x, left, why)
            else:
                for axis in left:
                    self.fix(x, axis, why)
                for axis in right:
                    self.fix(y, axis, why)
        return True

    def _blocks(self, one: ir.Value, axis: int, several: ir.Value, axes: Sequence[int], why: str) -> None:
        whole, first = self.of(one, axis), self.of(several, axes[0])
        if whole is None or first is None or len(whole) % len(first):
            self.fix(one, axis, why)
            self.fix(several, axes[0], why)
        else:
            step = len(whole) // len(first)
            for i, place in enumerate(first):
                self.tie([place] * step, whole[i * step : (i + 1) * step])
        for other in axes[1:]:
            self.fix(several, other, why)


def line_up(a: Sequence[int | str], b: Sequence[int | str]) -> list[tuple[list[int], list[int]]] | None:
    """Runs of axes of two shapes of one number of elements that hold the same elements, axes of length 1 left out.

    None where that cannot be told: symbolic dimensions are lined up only with themselves.
    """
    left = [(i, d) for i, d in enumerate(a) if d != 1]
    right = [(i, d) for i, d in enumerate(b) if d != 1]
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(left) or j < len(right):
        if i >= len(left) or j >= len(right):
            return None
        (axis_a, size_a), (axis_b, size_b) = left[i], right[j]
        i, j = i + 1, j + 1
        if size_a == size_b:
            found.append(([axis_a], [axis_b]))
            continue
        axes_a, axes_b = [axis_a], [axis_b]
        while size_a != size_b:
            if not isinstance(size_a, int) or not isinstance(size_b, int):
                return None
            if size_a < size_b:
                if i >= len(left):
                    return None
                axes_a.append(left[i][0])
                size_a = size_a * left[i][1] if isinstance(left[i][1], int) else "?"
                i += 1
            else:
                if j >= len(right):
                    return None
                axes_b.append(right[j][0])
                size_b = size_b * right[j][1] if isinstance(right[j][1], int) else "?"
                j += 1
        found.append((axes_a, axes_b))
    return found
