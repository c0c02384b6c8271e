"""Values of attention by heads: how a [batch, heads, length, size] value came about, and where it was one with its heads side by side.

Names of dimensions: B batch, N heads, S length (of the query), T length (of key and value), H size of a head. A *packed*
value has the heads side by side: [B, S, N*H].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from graphopt.rewriting import Context, Dim, Editor, Refuse, constant_tensor, scalar_of

from ..arguments import integer, ints
from ..fusion.reading import made_by, number

SWAP_HEADS = (0, 2, 1, 3)  # between [B, S, N, H] and [B, N, S, H]
_SWAP_LAST = (0, 1, 3, 2)


@dataclass(frozen=True)
class Packed:
    """Where the heads still are side by side.

    Attributes:
        value: [B, S, parts * N * H].
        part, parts: which of `parts` equal pieces along the last axis it is: query, key and value are often one value.
    """

    value: ir.Value
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Heads:
    """A query, key or value by heads.

    Attributes:
        value: [B, N, S, H], or [B, S, N, H] where `split` is true, or [1, B, N, S, H], one piece of several.
        split: whether heads and length are still to be swapped.
        factor: a number that it is multiplied by, taken out.
        repeated: how often each head is repeated for those of the query.
        dims: B, N, S, H, after repetition.
    """

    value: ir.Value
    split: bool
    factor: float
    repeated: int
    dims: tuple[Dim, Dim, Dim, Dim]

    @property
    def groups(self) -> int:
        """The number of heads before they are repeated."""
        return int(self.dims[1]) // self.repeated

    @property
    def size(self) -> int:
        """The size of a head."""
        return int(self.dims[3])

    def packed(self, context: Context) -> Packed | None:
        """The value with its heads side by side that this one was split from, or None."""
        source = self.value
        if not self.split:
            transpose = made_by(source, "Transpose")
            if transpose is None or permutation(transpose) != SWAP_HEADS or transpose.inputs[0] is None:
                return _piece(context, self)
            source = transpose.inputs[0]
        reshape = made_by(source, "Reshape")
        if reshape is None or reshape.inputs[0] is None:
            return None
        wanted = (self.dims[0], self.dims[2], self.groups * self.size)
        return Packed(reshape.inputs[0]) if context.dims(reshape.inputs[0]) == wanted else None


def _piece(context: Context, heads: Heads) -> Packed | None:
    """Query, key or value as one of the pieces of [B, S, parts, N, H], which was transposed to [parts, B, N, S, H]."""
    stacked, part = heads.value, None
    if context.rank(stacked) == 4:
        node = made_by(stacked, "Gather", "Squeeze", "Reshape")
        if node is None or node.inputs[0] is None:
            return None
        stacked = node.inputs[0]
        if node.op_type == "Gather":
            part, axis = scalar_of(node.inputs[1]), integer(node, "axis", 0)
            if axis != 0 or context.rank(node.inputs[1]) != 0:
                return None
    if part is None:
        if context.dims(stacked) != (1, *heads.dims):
            return None
        found = _taken(context, stacked)
        if found is None:
            return None
        stacked, part = found
    transpose = made_by(stacked, "Transpose")
    reshape = made_by(transpose.inputs[0], "Reshape") if transpose is not None else None
    if reshape is None or permutation(transpose) != (2, 0, 3, 1, 4):  # type: ignore[arg-type]
        return None
    b, n, s, h = heads.dims
    inner, outer = context.dims(reshape.outputs[0]), context.dims(reshape.inputs[0])
    if inner is None or len(inner) != 5 or not isinstance(inner[2], int) or not isinstance(part, int) or not 0 <= part < inner[2]:
        return None
    if inner != (b, s, inner[2], n, h) or outer != (b, s, inner[2] * n * h):  # type: ignore[operator]
        return None
    return Packed(reshape.inputs[0], part, inner[2])  # type: ignore[arg-type]


def _taken(context: Context, value: ir.Value) -> tuple[ir.Value, int] | None:
    """What one element along axis 0 was taken from, by a Slice or a Split into ones, and its number."""
    node = made_by(value, "Slice", "Split")
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Split":
        sizes = [context.dims(v) for v in node.outputs]
        same = integer(node, "axis", 0) == 0 and all(d is not None and d[:1] == (1,) for d in sizes)
        return (node.inputs[0], node.outputs.index(value)) if same else None
    starts, axes, steps = (ints(context, node, name, i) for name, i in (("starts", 1), ("axes", 3), ("steps", 4)))
    if not isinstance(starts, tuple) or len(starts) != 1 or axes not in ((0,), None) or steps not in ((1,), None):
        return None
    return node.inputs[0], starts[0]


def value_heads(context: Context, value: ir.Value) -> Heads:
    """Read a [B, N, S, H] value, or one of [B*N, S, H]; refuses where its shape is not known."""
    value, factor = _unscaled(context, value)
    dims = context.dims(value)
    if dims is not None and len(dims) == 3:
        value = _before_merge(context, value, dims)
        value, more = _unscaled(context, value)
        factor, dims = factor * more, context.dims(value)
    transpose = made_by(value, "Transpose")
    split = transpose is not None and permutation(transpose) == SWAP_HEADS
    if split:
        inner, more = _unscaled(context, transpose.inputs[0])  # type: ignore[union-attr, arg-type]
        if more != 1.0:
            value, factor = inner, factor * more
        else:
            split = False
    return _ungrouped(context, Heads(value, split, factor, 1, _checked(dims)))


def transposed_heads(context: Context, value: ir.Value) -> Heads | None:
    """Read the key out of its transpose, [B, N, H, T] or [B*N, H, T]; None where it is no transpose."""
    value, factor = _unscaled(context, value)
    dims = context.dims(value)
    if dims is None:
        raise Refuse("the shape of the transposed key is not known")
    if len(dims) == 3:
        transpose = made_by(value, "Transpose")
        if transpose is None or permutation(transpose) != (0, 2, 1) or transpose.inputs[0] is None:
            before = _before_merge(context, value, dims)
            found = transposed_heads(context, before)
        else:
            found = value_heads(context, transpose.inputs[0])
        return None if found is None else replace(found, factor=found.factor * factor)
    if len(dims) != 4:
        return None
    node = made_by(value, "Transpose")
    if node is not None and node.inputs[0] is not None:
        order = permutation(node)
        if order == (0, 2, 3, 1):  # of [B, T, N, H]
            inner, more = _unscaled(context, node.inputs[0])
            b, n, h, t = dims
            return _ungrouped(context, Heads(inner, True, factor * more, 1, _checked((b, n, t, h))))
        if order == _SWAP_LAST:
            found = value_heads(context, node.inputs[0])
            return replace(found, factor=found.factor * factor)
        return None
    # torch's new exporter transposes with the batch and the heads made one, and takes them apart again.
    reshape = made_by(value, "Reshape")
    inner = reshape.inputs[0] if reshape is not None else None
    node = made_by(inner, "Transpose")
    if inner is None or node is None or node.inputs[0] is None or permutation(node) != (0, 2, 1):
        return None
    flat = context.dims(inner)
    if flat is None or flat[1:] != dims[2:]:
        return None
    found = value_heads(context, node.inputs[0])
    return replace(found, factor=found.factor * factor) if found.dims[:2] == dims[:2] else None


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """The permutation of a Transpose; None where it is left out or a function's caller decides it."""
    attribute = node.attributes.get("perm")
    return None if attribute is None or attribute.is_ref() else tuple(int(i) for i in attribute.as_ints())


def scalar_factor(context: Context, node: ir.Node) -> tuple[ir.Value, float] | None:
    """What a Mul or Div by a number multiplies, and by which, where the shape stays that of the value."""
    for i in (0, 1) if node.op_type == "Mul" else (1,):
        factor, value = number(node.inputs[i]), node.inputs[1 - i]
        if factor is None or value is None or constant_tensor(value) is not None:
            continue
        if node.op_type == "Div" and factor == 0.0:
            return None
        rank, own = context.rank(value), context.rank(node.inputs[i])
        if rank is None or own is None or own > rank:
            return None  # it would add a dimension
        return value, factor if node.op_type == "Mul" else 1.0 / factor
    return None


def _unscaled(context: Context, value: ir.Value | None) -> tuple[ir.Value, float]:
    """A value without the numbers that it is multiplied by, and their product."""
    assert value is not None
    factor = 1.0
    while (node := made_by(value, "Mul", "Div")) is not None and (found := scalar_factor(context, node)) is not None:
        value, factor = found[0], factor * found[1]
    return value, factor


def _before_merge(context: Context, value: ir.Value, dims: tuple[Dim, ...]) -> ir.Value:
    """The value of rank 4 whose batch and heads a Reshape made one, or of rank 5 where the first dimension is 1."""
    reshape = made_by(value, "Reshape")
    inner = context.dims(reshape.inputs[0]) if reshape is not None else None
    if inner is not None and len(inner) == 5 and inner[0] == 1:
        inner = inner[1:]
    if inner is None or len(inner) != 4 or inner[2:] != dims[1:]:
        raise Refuse(f"{value.name!r} is of rank 3, and no Reshape that merges batch and heads makes it")
    return reshape.inputs[0]  # type: ignore[union-attr, return-value]


def _checked(dims: tuple[Dim, ...] | None) -> tuple[Dim, Dim, Dim, Dim]:
    if dims is not None and len(dims) == 5 and dims[0] == 1:
        dims = dims[1:]
    if dims is None or len(dims) != 4:
        raise Refuse("query, key and value are not known to be of rank 4")
    if not isinstance(dims[1], int) or not isinstance(dims[3], int):
        raise Refuse("the number of heads and their size are not known")
    return dims  # type: ignore[return-value]


def _ungrouped(context: Context, heads: Heads) -> Heads:
    """Undo the repetition of heads for the groups of a query: [B, G, S, H] to [B, G, r, S, H] to [B, G*r, S, H]."""
    reshape = None if heads.split else made_by(heads.value, "Reshape")
    expand = made_by(reshape.inputs[0], "Expand", "Tile") if reshape is not None else None
    if expand is None or expand.inputs[0] is None:
        return heads
    b, n, s, h = heads.dims
    wide, narrow = context.dims(expand.outputs[0]), context.dims(expand.inputs[0])
    if wide is None or narrow is None or len(wide) != 5 or len(narrow) != 5:
        return heads
    groups, times = wide[1], wide[2]
    if not isinstance(groups, int) or not isinstance(times, int) or groups * times != n:
        return heads
    if wide != (b, groups, times, s, h) or narrow != (b, groups, 1, s, h):
        return heads
    unsqueeze = made_by(expand.inputs[0], "Unsqueeze", "Reshape")
    source = unsqueeze.inputs[0] if unsqueeze is not None else None
    if source is None or context.dims(source) != (b, groups, s, h):
        return heads
    value, factor = _unscaled(context, source)
    return replace(heads, value=value, factor=heads.factor * factor, repeated=times)


def state_packed(editor: Editor, *all_heads: Heads) -> list[ir.Value]:
    """State values with their heads side by side, [B, S, N*H] each, without repetition."""
    pieces: dict[ir.Value, list[ir.Value]] = {}
    stated = []
    for heads in all_heads:
        width = heads.groups * heads.size
        found = heads.packed(editor.context)
        if found is None:
            by_heads = state_by_heads(editor, heads) if not heads.split else heads.value
            value = heads.value if heads.split else editor.node("Transpose", [by_heads], {"perm": SWAP_HEADS})
            stated.append(editor.node("Reshape", [value, editor.constant([0, 0, width], "packed_shape")]))
        elif found.parts == 1:
            stated.append(found.value)
        else:
            if found.value not in pieces:
                pieces[found.value] = _state_split(editor, found.value, [width] * found.parts)
            stated.append(pieces[found.value][found.part])
    return stated


def _state_split(editor: Editor, value: ir.Value, sizes: list[int]) -> list[ir.Value]:
    attributes: dict[str, object] = {"axis": 2}
    inputs = [value]
    if editor.context.opset(editor.match.root, "") < 13:
        attributes["split"] = sizes
    else:
        inputs.append(editor.constant(sizes, "packed_sizes"))
    return editor.node("Split", inputs, attributes, outputs=len(sizes))


def state_by_heads(editor: Editor, heads: Heads) -> ir.Value:
    """State the value as [B, N, S, H], without repetition."""
    if editor.context.rank(heads.value) == 5:
        raise Refuse("it is a piece of a value that is not known to hold query, key and value side by side")
    return editor.node("Transpose", [heads.value], {"perm": SWAP_HEADS}) if heads.split else heads.value

