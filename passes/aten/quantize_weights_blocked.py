"""`quantize-weights-blocked` on ATen graphs: integers of 4 or 8 bits, made numbers again block by block when the program runs.

Or, in 4 bits and where it is asked for, torch's own kernel, which reads them as they are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.rewriting import Refuse

from ..quantization.blocks import Blocks, Fit, Layout, quantize
from .linear import LINEAR, PRODUCTS
from .rows import called_on_rows, known_rows

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_EMBEDDING = "aten.embedding.default"
_TYPES = ("float32", "float64", "float16", "bfloat16")
_KERNEL = "aten._weight_int4pack_mm_for_cpu.default"
_KERNEL_TYPES = ("bfloat16", "float32", "float16")
_KERNEL_BLOCKS = (32, 64, 128, 256)
_KERNEL_ROWS = 16  # what the number of outputs must be a multiple of


@dataclass(frozen=True)
class Settings:
    """Options of the pass; `fit`: None where it calibrates; `kernel`: torch's own where it takes the weight."""

    layout: Layout
    fit: Fit | None
    tables: bool
    kernel: bool
    min_elements: int


def run(context: AtenContext, settings: Settings) -> None:
    """Quantize every matrix that products or look-ups use as their weight and nothing else, once for all of them."""
    from graphopt.aten.driver import apply

    done: list[tuple[float, str, int, int]] = []
    kernels = 0
    for weight in [n for n in context.program.specs if context.is_constant(n)]:
        shape = context.static_shape(weight)
        if shape is None or len(shape) != 2 or context.dtype(weight) not in _TYPES or math.prod(shape) < settings.min_elements:
            continue
        places = [_place(user, weight, context) for user in weight.users]
        if all(p is None for p in places) or (not settings.tables and any(p == "table" for p in places)):
            continue
        made: list[tuple[float, str, int, int, bool]] = []

        def narrow(first: Node, editor: AtenEditor, weight: Node = weight, made: list[Any] = made) -> None:
            made.append(_quantize(weight, first, editor, settings))

        before = context.log.applied
        apply(context, min(weight.users), narrow)
        if context.log.applied > before:
            done.append(made[0][:4])
            kernels += made[0][4]
    if done:
        context.log.note(_summary(done, settings, kernels))


def _quantize(weight: Node, first: Node, editor: AtenEditor, settings: Settings) -> tuple[float, str, int, int, bool]:
    """State the weight anew: its signal-to-noise ratio, name, bytes before and after, and whether a kernel reads it."""
    context = editor.context
    name = context.program.name_of(weight) or weight.name
    if context.is_output(weight):
        raise Refuse(f"the weight {name!r} is also an output of the program")
    place = _place(first, weight, context)
    for user in weight.users:
        if place is None or _place(user, weight, context) != place:
            raise Refuse(f"the weight {name!r} is also taken by {user.name!r}")
    if settings.fit is None:
        raise Refuse("gptq calibrates, which programs of torch are not: take the method hqq or rtn")
    array = context.required_float(weight, "the weight")
    rows, columns = array.shape[::-1] if place == "columns" else array.shape
    before = context.weight_bytes(weight)
    layout = settings.layout
    size = layout.bytes(rows, columns, array.dtype.itemsize)
    context.require(size < before, f"with {columns} numbers a row, blocks of {layout.block} would take more than the weight does")
    blocks = quantize(array.T if place == "columns" else array, layout, settings.fit)
    if settings.kernel and place == "rows" and _fits_kernel(weight, blocks, context):
        _call_kernel(weight, blocks, name, editor)
        return blocks.snr, name, before, size, True
    _dequantize(weight, blocks, name, place, editor)
    return blocks.snr, name, before, size, False


def _place(user: Node, weight: Node, context: AtenContext) -> str | None:
    """Whether outputs lie along the rows or the columns of a weight, or are its rows ("table"); None: it is no weight."""
    operator = context.op(user)
    if not operator.startswith("aten."):
        return None
    given = context.arguments(user)
    if sum(n is weight for n in given.values()) != 1:
        return None
    if operator in (LINEAR, _EMBEDDING):
        return None if given["weight"] is not weight else "rows" if operator == LINEAR else "table"
    if operator in PRODUCTS:
        second = given.get("mat2", given.get("other"))
        return "columns" if second is weight else None
    return None


def _dequantize(weight: Node, blocks: Blocks, name: str, place: str, editor: AtenEditor) -> None:
    """(q - zero) scale, by blocks [rows, blocks, block]; of a table only for the rows that are read.

    Integers are stored less half their range, so that four bits are a signed nibble: shifts give it its sign back.
    """
    layout = blocks.layout
    integers = (blocks.integers.astype(np.int16) - layout.middle).astype(np.int8)
    if layout.bits == 4:  # the halves of a block side by side: its first in the low nibbles
        half = layout.block // 2
        integers = ((integers[..., :half] & 15).view(np.uint8) | (integers[..., half:].view(np.uint8) << 4)).view(np.int8)
    held: dict[str, Any] = {"made_of": [weight], "parameter": False}
    stored = editor.constant(integers, f"{name}_int{layout.bits}", **held)
    scale = editor.constant(blocks.scale[..., None], f"{name}_scale", **held)
    zero = None
    if not layout.symmetric:  # the difference of two integers of 8 bits has 9
        offset = (blocks.zero.astype(np.int16) - layout.middle)[..., None]
        zero = editor.constant(offset.astype(np.int8) if layout.bits == 4 else offset, f"{name}_zero", **held)
    if place != "table":
        wide = _numbers(editor, stored, scale, zero, blocks)
        editor.replace(weight, editor.call("aten.permute.default", [wide, [1, 0]]) if place == "columns" else wide)
        return
    first = editor.root
    for user in list(weight.users):
        editor.root = user
        index = editor.context.arguments(user)["indices"]
        parts = [None if part is None else editor.call("aten.index.Tensor", [part, [index]]) for part in (stored, scale, zero)]
        editor.replace(user, _numbers(editor, *parts, blocks))
    editor.root = first


def _numbers(editor: AtenEditor, stored: Node, scale: Node, zero: Node | None, blocks: Blocks) -> Node:
    """The numbers [..., columns] that integers [..., blocks, block] stand for."""
    layout = blocks.layout
    if layout.bits == 4:
        low = editor.call("aten.bitwise_left_shift.Tensor_Scalar", [stored, 4])
        low = editor.call("aten.bitwise_right_shift.Tensor_Scalar", [low, 4])
        high = editor.call("aten.bitwise_right_shift.Tensor_Scalar", [stored, 4])
        stored = editor.call("aten.cat.default", [[low, high], -1])
    if zero is not None:
        stored = editor.call("aten.sub.Tensor", [stored, zero])
    wide = editor.call("aten.flatten.using_ints", [editor.call("aten.mul.Tensor", [stored, scale]), -2, -1])
    count = layout.blocks(blocks.columns) * layout.block
    return wide if count == blocks.columns else editor.call("aten.slice.Tensor", [wide, -1, 0, blocks.columns])


def _fits_kernel(weight: Node, blocks: Blocks, context: AtenContext) -> bool:
    layout, rows = blocks.layout, len(blocks.integers)
    if layout.bits != 4 or layout.block not in _KERNEL_BLOCKS or rows % _KERNEL_ROWS or blocks.columns % layout.block:
        return False
    inputs = [context.arguments(user)["input"] for user in weight.users]
    return context.dtype(weight) in _KERNEL_TYPES and all(known_rows(x, context) is not None for x in inputs)


def _call_kernel(weight: Node, blocks: Blocks, name: str, editor: AtenEditor) -> None:
    """Let torch's kernel multiply by the weight: (q - 8) scale + (8 - zero) scale."""
    from graphopt.aten.packing import packed_int4

    held: dict[str, Any] = {"made_of": [weight], "parameter": False}
    kind = blocks.scale.dtype
    scale = blocks.scale.astype(np.float32)
    offset = (blocks.layout.middle - blocks.zero.astype(np.float32)) * scale
    both = np.ascontiguousarray(np.stack([scale, offset], axis=-1).transpose(1, 0, 2).astype(kind))
    integers = blocks.integers.reshape(len(blocks.integers), -1)
    stored = editor.constant(packed_int4(integers), f"{name}_int4_packed", **held)
    factors = editor.constant(both, f"{name}_scale_and_offset", **held)
    first = editor.root
    for user in list(weight.users):
        editor.root = user
        editor.replace(user, called_on_rows(editor, user, lambda x: editor.call(_KERNEL, [x, stored, blocks.layout.block, factors])))
    editor.root = first


def _summary(done: list[tuple[float, str, int, int]], settings: Settings, kernels: int) -> str:
    layout, worst, ratios = settings.layout, min(done), sorted(d[0] for d in done)
    before, after = sum(d[2] for d in done), sum(d[3] for d in done)
    kind = "symmetric" if layout.symmetric else "with zero points"
    text = (
        f"{len(done)} weights in {layout.bits} bits in blocks of {layout.block}, {kind}: "
        f"{before:,} bytes to about {after:,}; signal-to-noise ratio {ratios[len(ratios) // 2]:.1f} dB in the median, {worst[0]:.1f} dB "
        f"at worst ({worst[1]})"
    )
    if kernels:
        from graphopt.aten.packing import instruction_set

        text += f"; torch's kernel reads {kernels} of them, packed for CPUs with {instruction_set()}: on others the answers would be wrong"
    return text
