"""What fused attention operators ask for alike: the masks as one that is added, and the result in the place of the old one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Dim, Editor, Refuse, constant_tensor, guards

from ..arguments import int_elements
from ..fusion.reading import made_by, number
from . import masks
from .recognize import Attention


def state_bias(editor: Editor, attention: Attention) -> ir.Value | None:
    """State all masks as one that is added, [B or 1, N or 1, S, T]; None without a mask.

    The fused operators of ONNX Runtime broadcast batch and heads, not the lengths.
    """
    context = editor.context
    terms = [(bias, context.dims(bias)) for bias in attention.biases]
    dtype = context.dtype(attention.product.outputs[0])
    for choice in attention.choices:
        if not masks.removes(choice.fill) or dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            raise Refuse("masked scores are set to a number that does not remove them")
        fill, zero = (editor.constant(np.asarray(n, dtype.numpy()), "mask") for n in (number(choice.fill), 0.0))
        bias = editor.node("Where", [choice.condition, *((zero, fill) if choice.keeps else (fill, zero))])
        terms.append((bias, context.dims(choice.condition)))
    if not terms:
        return None
    bias, dims = terms[0]
    for term, other in terms[1:]:
        bias, dims = editor.node("Add", [bias, term]), _broadcast(dims, other)
    return _spread(editor, attention, bias, dims)


def _broadcast(a: tuple[Dim, ...] | None, b: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    if a is None or b is None:
        return None
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b)
    return tuple(j if i == 1 else i if j in (1, i) else "?" for i, j in pairs)


def _spread(editor: Editor, attention: Attention, bias: ir.Value, dims: tuple[Dim, ...] | None) -> ir.Value:
    """State `bias` with rank 4 and the full lengths."""
    if dims is None:
        raise Refuse("the shape of the mask is not known")
    wanted = (*attention.query.dims[:3], attention.key.dims[2])
    full = (1,) * (4 - len(dims)) + dims
    if len(full) != 4 or full[0] not in (1, wanted[0]) or full[1] not in (1, wanted[1]):
        raise Refuse("batch and heads of the mask are not known to be 1 or those of the scores")
    if len(dims) == 4 and full[2:] == wanted[2:]:
        return bias
    sizes = [ones(editor, 2), *(_size(editor, attention, full, wanted, axis) for axis in (2, 3))]
    return editor.node("Expand", [bias, joined(editor, sizes)])


def _size(editor: Editor, attention: Attention, dims: tuple[Dim, ...], wanted: tuple[Dim, ...], axis: int) -> ir.Value:
    """State one element of the shape that a mask is expanded to: 1 where it has the length already."""
    if dims[axis] == wanted[axis]:
        return ones(editor, 1)
    heads = attention.query if axis == 2 else attention.key
    return size(editor, wanted[axis], heads.value, 1 if heads.split else 2)


def size(editor: Editor, dim: Dim, value: ir.Value, axis: int) -> ir.Value:
    """State a dimension, which `value` has at `axis`, as a vector of one element: of an input where one has it, alike for all layers."""
    if isinstance(dim, int):
        return editor.constant([dim], "size")
    graph = editor.match.root.graph
    for given in graph.inputs if isinstance(graph, ir.Graph) else ():
        dims = editor.context.dims(given) or ()
        if dim in dims:
            value, axis = given, dims.index(dim)
            break
    return editor.node("Gather", [editor.node("Shape", [value]), editor.constant([axis], "axis")], {"axis": 0})


def ones(editor: Editor, count: int) -> ir.Value:
    """A vector of ones."""
    return editor.constant([1] * count, "ones")


def joined(editor: Editor, sizes: list[ir.Value]) -> ir.Value:
    """State vectors of sizes as one."""
    created = {v: v.const_value for v in editor.initializers}
    if all(v in created for v in sizes):
        return editor.constant(np.concatenate([created[v].numpy() for v in sizes]), "sizes")  # type: ignore[union-attr]
    return editor.node("Concat", sizes, {"axis": 0})


def replace_merged(editor: Editor, attention: Attention, output: ir.Value) -> None:
    """Let `output`, [B, S, N*H], stand for the result of an attention."""
    context, merged = editor.context, attention.merged
    if merged is None:
        raise Refuse("its result is not brought to heads side by side")
    if attention.guarded:
        output = state_guard(editor, output, context.dtype(attention.product.outputs[0]))
    heads, size = attention.heads, attention.value.size
    b, s = attention.query.dims[0], attention.query.dims[2]
    if context.dims(merged) == (b, s, heads * size):
        editor.replace(merged, output)
        return
    reshape = made_by(merged, "Reshape")
    if reshape is None or not _shape_serves(context, reshape):
        if reshape is not None:
            merged = reshape.inputs[0]
        editor.replace(merged, editor.node("Reshape", [output, editor.constant([0, 0, heads, size], "by_heads_shape")]))  # type: ignore[arg-type]
        return
    attributes = {"allowzero": 1} if reshape.attributes.get("allowzero") is not None and reshape.attributes["allowzero"].as_int() else None
    editor.replace(merged, editor.node("Reshape", [output, reshape.inputs[1]], attributes))


def state_guard(editor: Editor, output: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    """State 0 in the place of NaN: what the rows of the result are whose probabilities were NaN, and so made 0."""
    if dtype not in guards.FLOATS:
        raise Refuse("its type is not known")
    zero = editor.constant(np.asarray(0, dtype.numpy()), "zero")
    return editor.node("Where", [editor.node("IsNaN", [output]), zero, output])


def _shape_serves(context: Context, reshape: ir.Node) -> bool:
    """Whether the shape that a Reshape of [B, S, N, H] is given serves [B, S, N*H] too: it copies no size but the first two."""
    if len(reshape.inputs) < 2 or constant_tensor(reshape.inputs[1]) is None:
        return False
    sizes = int_elements(context, reshape.inputs[1])  # type: ignore[arg-type]
    return isinstance(sizes, tuple) and 0 not in sizes[2:]
