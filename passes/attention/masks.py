"""Masks of attention: whether one is causal (a query sees the keys up to its own position and no others), and whether it is finite."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Dim, constant_array, constant_tensor

from ..arguments import int_elements, integer, ints
from ..fusion.reading import made_by, number

MASKED = -1e30
"""A number at least this low removes a score: adding it to one, or taking it instead, comes to the same after rounding."""

_LARGEST = 1 << 26  # bytes of a constant mask that is looked at
_WRAPPERS = ("Unsqueeze", "Expand", "Identity")
_DEPTH = 12


def removes(value: ir.Value | None) -> bool:
    """Whether a constant is one number, low enough to remove a score: -inf, or the lowest of its type."""
    found = number(value)
    if found is None:
        return False
    if found <= MASKED:
        return True
    dtype = constant_tensor(value).dtype  # type: ignore[union-attr]
    return dtype == ir.DataType.FLOAT16 and found <= float(np.finfo(np.float16).min)


def is_causal(context: Context, value: ir.Value, dims: tuple[Dim, Dim], *, keeps: bool | None) -> bool:
    """Whether a mask over scores of `dims` (S, T) lets each query see the keys up to its own position and no others.

    `keeps`: what an element of a boolean mask does where it is true: keep a score, or remove it; None: an additive mask.
    """
    return _Causal(context, dims).holds(value, keeps)


def known_finite(value: ir.Value | None) -> bool:
    """Whether an additive mask cannot be infinite or NaN: it chooses between finite constants."""
    for _ in range(_DEPTH):
        array = constant_array(value, max_bytes=_LARGEST)
        if array is not None:
            return bool(np.isfinite(array).all())
        node = made_by(value, "Where", *_WRAPPERS, "Reshape", "Slice", "Squeeze")
        if node is None:
            return False
        if node.op_type == "Where":
            numbers = [number(v) for v in node.inputs[1:3]]
            return all(n is not None and np.isfinite(n) for n in numbers)
        value = node.inputs[0]
    return False


class _Causal:
    def __init__(self, context: Context, dims: tuple[Dim, Dim]) -> None:
        self.context = context
        self.rows, self.columns = dims

    def holds(self, value: ir.Value | None, keeps: bool | None) -> bool:
        for _ in range(_DEPTH):
            if value is None or not self._covers(value):
                return False
            array = constant_array(value, max_bytes=_LARGEST)
            if array is not None:
                return _is_triangle(array, keeps)
            node = made_by(value, *_WRAPPERS, "Not", "Cast", "Slice", "Where", "Trilu", "LessOrEqual", "GreaterOrEqual", "Less", "Greater")
            if node is None:
                return False
            kind = node.op_type
            if kind == "Slice":
                return self._sliced(node, keeps)
            if kind == "Trilu":
                return self._triangle(node, keeps)
            if kind == "Where":
                return self._chosen(node, keeps)
            if kind in ("LessOrEqual", "GreaterOrEqual", "Less", "Greater"):
                return keeps is not None and self._compared(node, keeps)
            if kind == "Not":
                if keeps is None:
                    return False
                keeps = not keeps
            elif kind == "Cast" and (keeps is None or self.context.dtype(node.inputs[0]) is None):
                return False
            value = node.inputs[0]
        return False

    def _covers(self, value: ir.Value) -> bool:
        """Whether the last two dimensions are those of the scores, and those before them are 1 or broadcast."""
        dims = self.context.dims(value)
        return dims is not None and len(dims) >= 2 and at_most(dims[-2], self.rows) and at_most(dims[-1], self.columns)

    def _chosen(self, node: ir.Node, keeps: bool | None) -> bool:
        if keeps is not None:
            return False
        condition, chosen, other = node.inputs[:3]
        if number(chosen) == 0.0 and removes(other):
            return self.holds(condition, True)
        return removes(chosen) and number(other) == 0.0 and self.holds(condition, False)

    def _sliced(self, node: ir.Node, keeps: bool | None) -> bool:
        """A corner of a constant triangle that begins at its first row and column."""
        value: ir.Value | None = node.outputs[0]
        while (node := made_by(value, "Slice", "Unsqueeze", "Identity")) is not None:  # type: ignore[assignment]
            if node.op_type == "Slice":
                starts, steps = ints(self.context, node, "starts", 1), ints(self.context, node, "steps", 4)
                if not isinstance(starts, tuple) or any(starts):
                    return False
                if steps is not None and (not isinstance(steps, tuple) or any(s != 1 for s in steps)):
                    return False
            value = node.inputs[0]
        array = constant_array(value, max_bytes=_LARGEST)
        return array is not None and _is_triangle(array, keeps)

    def _triangle(self, node: ir.Node, keeps: bool | None) -> bool:
        """Trilu of a matrix of one number: its lower half with the diagonal kept, or the half above it removed."""
        upper, offset = integer(node, "upper", 1), 0
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            given = int_elements(self.context, node.inputs[1])
            if not isinstance(given, tuple) or len(given) != 1:
                return False
            offset = given[0]
        number_ = _filled(node.inputs[0])
        if number_ is None:
            return False
        if keeps is None:
            return upper == 1 and offset == 1 and number_ <= MASKED
        if not number_:
            return False
        return (upper == 0 and offset == 0) if keeps else (upper == 1 and offset == 1)

    def _compared(self, node: ir.Node, keeps: bool) -> bool:
        """The positions of queries (a column) compared with those of keys (a row)."""
        left, right = (self._positions(v) for v in node.inputs[:2])
        if {left, right} != {"rows", "columns"}:
            return False
        kind = node.op_type
        if left == "columns":  # key ? query
            return kind == ("LessOrEqual" if keeps else "Greater")
        return kind == ("GreaterOrEqual" if keeps else "Less")

    def _positions(self, value: ir.Value | None) -> str | None:
        """Whether a value counts 0, 1, 2, ... along the queries or along the keys of the scores."""
        dims = self.context.dims(value)
        if value is None or not dims or any(d != 1 for d in dims[:-2]):
            return None
        along = "columns" if len(dims) == 1 or dims[-2] == 1 else "rows" if dims[-1] == 1 else None
        length = dims[-1] if along == "columns" else dims[-2] if along else None
        if along is None or not at_most(length, self.columns if along == "columns" else self.rows):
            return None
        for _ in range(_DEPTH):
            array = constant_array(value, max_bytes=_LARGEST)
            if array is not None:
                counted = array.dtype.kind in "iuf" and np.array_equal(array.reshape(-1), np.arange(array.size))
                return along if counted else None
            node = made_by(value, "Range", "Unsqueeze", "Reshape", "Cast", "Squeeze", "Identity", "Slice")
            if node is None:
                return None
            if node.op_type == "Range":
                return along if number(node.inputs[0]) == 0 and number(node.inputs[2]) == 1 else None
            if node.op_type == "Slice":
                starts, steps = ints(self.context, node, "starts", 1), ints(self.context, node, "steps", 4)
                if starts != (0,) or steps not in ((1,), None):
                    return None
            value = node.inputs[0]
        return None


def _filled(value: ir.Value | None) -> float | None:
    """The number that fills a matrix."""
    for _ in range(_DEPTH):
        array = constant_array(value, max_bytes=_LARGEST)
        if array is not None:
            return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else None
        node = made_by(value, "ConstantOfShape", "Cast", *_WRAPPERS)
        if node is None:
            return None
        if node.op_type == "ConstantOfShape":
            fill = node.attributes.get("value")
            if fill is None:
                return 0.0
            return None if fill.is_ref() else float(fill.as_tensor().numpy().reshape(()).item())
        value = node.inputs[0]
    return None


def _is_triangle(array: np.ndarray, keeps: bool | None) -> bool:
    """Whether all matrices of a constant mask are causal."""
    if array.ndim < 2 or array.size == 0:
        return False
    lower = np.tril(np.ones(array.shape[-2:], bool))
    if keeps is None:
        if array.dtype.kind != "f":
            return False
        low = float(np.finfo(np.float16).min) if array.dtype == np.float16 else MASKED
        return bool((array[..., lower] == 0).all() and (array[..., ~lower] <= low).all())
    if array.dtype.kind not in "biu":
        return False
    return bool(((array != 0) == (lower if keeps else ~lower)).all())


_MINIMUM = re.compile(r"Min\(\d+, (.+)\)")


def at_most(dim: Dim | None, whole: Dim) -> bool:
    """Whether a dimension is `whole`, or that of a table cut to it: a longer one than the table fails to broadcast."""
    if dim == whole:
        return True
    found = _MINIMUM.fullmatch(dim) if isinstance(dim, str) else None
    return found is not None and found.group(1) == whole
