"""Rotary position embedding that is spelled out: x cos + rotate(x) sin, where rotate swaps the halves of a head and negates one.

Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021; the halves as in GPT-NeoX and Llama.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Dim, Refuse, constant_array, guards, use_count

from ..arguments import UNKNOWN, integer, ints, normal_axes
from ..fusion.reading import made_by
from .masks import at_most

_DEPTH = 6
_LARGEST = 1 << 26  # bytes of a table that is looked at


@dataclass(frozen=True)
class Table:
    """Cosines or sines by position, of half the size of a head.

    Attributes:
        array: a constant table [positions, H/2], of which the first S are used; or None.
        function, angles: otherwise "Cos" or "Sin", of angles [1, ..., S, H/2].
    """

    array: np.ndarray | None = None
    function: str = ""
    angles: ir.Value | None = None


@dataclass(frozen=True)
class Rotary:
    """One rotary embedding.

    Attributes:
        x: [B, N, S, H].
        cos, sin: the tables.
        nodes: what computes it.
    """

    x: ir.Value
    cos: Table
    sin: Table
    nodes: tuple[ir.Node, ...]


def recognize_rotary(context: Context, add: ir.Node) -> Rotary | None:
    """The rotary embedding that ends with an Add, or None where there is none.

    Raises:
        Refuse: it turns a value, but not as the operator does.
    """
    products = [made_by(v, "Mul") for v in add.inputs]
    if len(products) != 2 or None in products:
        return None
    for plain, turned in (products, products[::-1]):
        for i in (0, 1):
            found = _rotated(context, turned.inputs[i])  # type: ignore[union-attr]
            if found is None:
                continue
            x, nodes = found
            if x not in plain.inputs:  # type: ignore[union-attr]
                return None
            cos = plain.inputs[1 if plain.inputs[0] is x else 0]  # type: ignore[union-attr]
            return _read(context, x, cos, turned.inputs[1 - i], (add, plain, turned, *nodes))  # type: ignore[union-attr, arg-type]
    return None


def _read(context: Context, x: ir.Value, cos: ir.Value | None, sin: ir.Value | None, nodes: tuple[ir.Node, ...]) -> Rotary:
    for node in nodes[1:]:
        for value in node.outputs:
            if value.is_graph_output() or use_count(value) > 1:
                raise Refuse(f"{value.name!r}, inside it, is also needed elsewhere")
    dims = context.dims(x)
    guards.require(dims is not None and len(dims) == 4 and isinstance(dims[3], int), "the shape of what is turned is not known")
    return Rotary(x, _table(context, cos, dims), _table(context, sin, dims), nodes)  # type: ignore[arg-type]


def _rotated(context: Context, value: ir.Value | None) -> tuple[ir.Value, list[ir.Node]] | None:
    """What a Concat of its negated upper half and its lower half comes from."""
    concat = made_by(value, "Concat")
    if concat is None or len(concat.inputs) != 2:
        return None
    negated = made_by(concat.inputs[0], "Neg")
    if negated is None:
        return None
    upper, lower = _half(context, negated.inputs[0], 1), _half(context, concat.inputs[1], 0)
    if upper is None or lower is None or upper[0] is not lower[0]:
        return None
    rank = context.rank(upper[0])
    if rank is None or normal_axes((integer(concat, "axis", 0) or 0,), rank) != (rank - 1,):
        return None
    return upper[0], list(dict.fromkeys([concat, negated, upper[1], lower[1]]))


def _half(context: Context, value: ir.Value | None, which: int) -> tuple[ir.Value, ir.Node] | None:
    """What a half of the last axis was taken from."""
    node = made_by(value, "Split", "Slice")
    if node is None or node.inputs[0] is None:
        return None
    whole, part = context.dims(node.inputs[0]), context.dims(value)
    if whole is None or part is None or not isinstance(whole[-1], int) or whole[:-1] != part[:-1] or part[-1] * 2 != whole[-1]:
        return None
    if node.op_type == "Split":
        axis = normal_axes((integer(node, "axis", 0) or 0,), len(whole))
        return (node.inputs[0], node) if axis == (len(whole) - 1,) and len(node.outputs) == 2 and node.outputs[which] is value else None
    starts, axes, steps = (ints(context, node, name, i) for name, i in (("starts", 1), ("axes", 3), ("steps", 4)))
    if axes == UNKNOWN or axes is None or normal_axes(axes, len(whole)) != (len(whole) - 1,) or steps not in (None, (1,)):  # type: ignore[arg-type]
        return None
    return (node.inputs[0], node) if starts in ((which * part[-1],), (which * part[-1] - whole[-1],) if which else ()) else None


def _table(context: Context, value: ir.Value | None, dims: tuple[Dim, ...]) -> Table:
    """Read cosines or sines [.., S, H] that are the same in both halves."""
    shape = context.dims(value)
    if value is None or shape is None or len(shape) < 2 or shape[-1] != dims[3] or not at_most(shape[-2], dims[2]):
        raise Refuse("cosines and sines are not known to be by position and of the size of a head")
    if any(d != 1 for d in shape[:-2]):
        raise Refuse("cosines and sines differ from sequence to sequence")
    half = int(dims[3]) // 2
    for _ in range(_DEPTH):
        array = constant_array(value, max_bytes=_LARGEST)
        if array is not None:
            array = array.reshape(-1, array.shape[-1])
            if array.shape[1] != 2 * half or not np.array_equal(array[:, :half], array[:, half:]):
                break
            return Table(array=array[:, :half])
        node = made_by(value, "Slice", "Unsqueeze", "Reshape", "Cos", "Sin")
        if node is None:
            break
        if node.op_type in ("Cos", "Sin"):
            concat = made_by(node.inputs[0], "Concat")
            if concat is None or len(concat.inputs) != 2 or concat.inputs[0] is not concat.inputs[1]:
                break
            angles = context.dims(concat.inputs[0])
            if angles is None or angles[-1] != half or any(d != 1 for d in angles[:-2]):
                break
            return Table(function=node.op_type, angles=concat.inputs[0])
        if node.op_type == "Slice":
            starts, steps = ints(context, node, "starts", 1), ints(context, node, "steps", 4)
            if not isinstance(starts, tuple) or any(starts) or steps not in (None, (1,) * len(starts)):
                break
        if context.dims(node.inputs[0]) is None or context.dims(node.inputs[0])[-1] != 2 * half:  # type: ignore[index]
            break
        value = node.inputs[0]
    raise Refuse("cosines and sines are not known to be alike for both halves of a head")
