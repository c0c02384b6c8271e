"""Weights in blocks as operators: those of ONNX Runtime, or DequantizeLinear with a block size before a plain product."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, constant_tensor, guards

from .blocks import Blocks, Layout
from .weight_units import Unit, bias_of

_DOMAIN = "com.microsoft"

#: Execution providers with kernels of MatMulNBits and GatherBlockQuantized.
_CONTRIB = ("cpu", "cuda", "dml", "js", "webgpu")
_SIGNED = {4: ml_dtypes.int4, 8: np.int8}
_UNSIGNED = {4: ml_dtypes.uint4, 8: np.uint8}


def form_for(provider: str | None) -> str:
    """Which form a target runs."""
    return "contrib" if provider is None or provider in _CONTRIB else "standard"


def is_smaller(unit: Unit, layout: Layout) -> bool:
    """Whether blocks take less than the weight."""
    tensor = constant_tensor(unit.weight)
    assert tensor is not None
    return layout.bytes(*unit.size(), tensor.dtype.itemsize) < tensor.nbytes


def guard_form(context: Context, unit: Unit, layout: Layout, form: str) -> None:
    """Refuse what cannot be said in a form, and what would not get smaller."""
    rows, columns = unit.size()
    guards.require(rows > 0 and columns > 0, "the weight has no elements")
    guards.require(
        is_smaller(unit, layout), f"with {columns} numbers a row, blocks of {layout.block} would take more than the weight does"
    )
    if form == "standard":
        opset = min(context.opset(node, "") for node in unit.readers)
        guards.require(opset >= 21, f"opset {opset} has no DequantizeLinear with a block size (21 has)")
        guards.require(not unit.tables, "rows of a table in blocks cannot be read in standard ONNX")
    elif unit.tables:
        guards.require(columns * layout.bits % 8 == 0, f"a row of {columns} numbers does not end with a byte")
        whole = not unit.products or columns % layout.block == 0
        guards.require(whole, f"it is also read by rows, and {columns} numbers a row are no multiple of the block size {layout.block}")


def state(context: Context, unit: Unit, blocks: Blocks, form: str) -> None:
    """Put blocks in the place of a weight, and operators that read them in the place of those that read it."""
    store = Editor(context, Match(_place(unit), unit.readers))
    if form == "standard":
        _state_standard(store, unit, blocks)
        store.commit()
        context.model.ir_version = max(context.model.ir_version, 10)  # the first with 4-bit integers
        return
    packed, zeros, name = blocks.packed(), blocks.packed_zeros(), unit.weight.name
    if not unit.products:  # rows without what fills them up
        packed = np.ascontiguousarray(packed.reshape(len(packed), -1)[:, : blocks.columns * blocks.layout.bits // 8])
    stored = [store.constant(packed, f"{name}_blocks"), store.constant(blocks.scale, f"{name}_scales")]
    stored.append(None if zeros is None else store.constant(zeros, f"{name}_zero_points"))
    editors = [_product(context, node, stored, blocks) for node in unit.products]
    editors += [_rows(context, node, stored, blocks, shared=bool(unit.products)) for node in unit.tables]
    for editor in (store, *editors):
        editor.commit()


def _place(unit: Unit) -> ir.Node:
    """Where what is stored stands: in the graph of the weight, in front of all that reads it, in subgraphs too."""
    constant = unit.weight.producer()
    if constant is not None:
        return constant
    readers, graph = unit.readers, unit.weight.graph
    assert graph is not None
    if len(readers) == 1 and readers[0].graph is graph:
        return readers[0]
    return next(iter(graph))


def _product(context: Context, node: ir.Node, stored: list[ir.Value | None], blocks: Blocks) -> Editor:
    """MatMulNBits in the place of a product."""
    editor, count = Editor(context, Match(node, [node])), len(blocks.integers)
    added = bias_of(node)
    bias = None if added is None else _vector(editor, added, count)
    inputs = [node.inputs[0], *stored, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    layout = blocks.layout
    attributes = {"K": blocks.columns, "N": count, "bits": layout.bits, "block_size": layout.block}
    last = added is None or bias is not None
    output = node.outputs[0]
    result = editor.node("MatMulNBits", inputs, attributes, domain=_DOMAIN, name=node.name or None, like=output if last else None)
    if not last:
        result = editor.node("Add", [result, added], like=output)
    editor.replace(output, result)
    return editor


def _vector(editor: Editor, bias: ir.Value, count: int) -> ir.Value | None:
    """A bias as one number for each output; None where it is not that."""
    tensor, dims = constant_tensor(bias), editor.context.dims(bias)
    if dims == (count,):
        return bias
    if tensor is not None and dims in ((), (1,), (1, 1), (1, count)):
        return editor.constant(np.ascontiguousarray(np.broadcast_to(tensor.numpy().reshape(-1), (count,))), bias.name or "bias")
    return None


def _rows(context: Context, node: ir.Node, stored: list[ir.Value | None], blocks: Blocks, *, shared: bool) -> Editor:
    """GatherBlockQuantized in the place of a Gather; what a product reads too is stored once, in the product's shape."""
    editor = Editor(context, Match(node, [node]))
    table, scales, zeros = stored
    if shared:
        shape = editor.constant([len(blocks.integers), blocks.columns * blocks.layout.bits // 8], f"{table.name}_by_rows")  # type: ignore[union-attr]
        table = editor.node("Reshape", [table, shape], name=f"{table.name}_rows")  # type: ignore[union-attr]
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": blocks.layout.block, "bits": blocks.layout.bits}
    inputs = [table, node.inputs[1], scales, *([] if zeros is None else [zeros])]
    output = node.outputs[0]
    result = editor.node("GatherBlockQuantized", inputs, attributes, domain=_DOMAIN, name=node.name or None, like=output)
    editor.replace(output, result)
    return editor


def _state_standard(store: Editor, unit: Unit, blocks: Blocks) -> None:
    """One DequantizeLinear; [K, N], the only way round of which the runtime makes MatMulNBits."""
    layout, name = blocks.layout, unit.weight.name
    integers = blocks.integers.reshape(len(blocks.integers), -1)[:, : blocks.columns].T
    inputs = [None, store.constant(np.ascontiguousarray(blocks.scale.T), f"{name}_scales")]
    if layout.symmetric:
        stored = (integers.astype(np.int16) - layout.middle).astype(np.int8).astype(_SIGNED[layout.bits])
    else:
        stored = integers.astype(_UNSIGNED[layout.bits])
        inputs.append(store.constant(np.ascontiguousarray(blocks.zero.T).astype(_UNSIGNED[layout.bits]), f"{name}_zero_points"))
    inputs[0] = store.constant(np.ascontiguousarray(stored), f"{name}_blocks")
    attributes = {"axis": 0, "block_size": layout.block}
    weight = store.node(
        "DequantizeLinear", inputs, attributes, name=f"{name}_dequantized", like=None if unit.by_rows else unit.weight
    )
    for node in unit.products:
        store.set_input(node, 1, weight)
        if node.op_type == "Gemm":
            store.set_attribute(node, "transB", None)
