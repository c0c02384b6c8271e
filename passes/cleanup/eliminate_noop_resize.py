"""Resize and Upsample by a factor of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Rewrite, constant_tensor, op, var
from graphopt.rewriting.guards import require

from ..arguments import UNKNOWN, int_elements, integer, ints, normal_axes, text
from .eliminate_noop_arithmetic import is_scalar_of


@dataclass(frozen=True)
class EliminateNoopResize(Rewrite):
    """Remove Resize and Upsample whose every scale is exactly 1."""

    name = "eliminate-noop-resize"

    def patterns(self) -> Sequence[Pattern]:
        return (op(("Resize", "Upsample"), var("x"), ...),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, x = match.root, match["x"]
        if not _unscaled(editor.context, node, x):
            return
        transform = text(node, "coordinate_transformation_mode", "half_pixel")
        require(transform is not None, "the way it maps coordinates is a parameter of the function")
        require(transform != "tf_crop_and_resize", "it crops to a region of interest")
        require(transform != "tf_half_pixel_for_nn", "tf_half_pixel_for_nn shifts by half an element even where nothing is scaled")
        require(integer(node, "antialias", 0) == 0, "its antialiasing filter may act where nothing is scaled")
        editor.replace(node.outputs[0], x)


def _unscaled(context: Context, node: ir.Node, x: ir.Value) -> bool:
    scales = node.attributes.get("scales")
    if scales is not None:  # Upsample before opset 9
        return not scales.is_ref() and all(s == 1.0 for s in scales.as_floats())
    inputs = tuple(node.inputs) + (None,) * (4 - len(node.inputs))
    given = inputs[1] if node.op_type == "Upsample" or context.opset(node) < 11 else inputs[2]
    if given is not None and not _is_empty(given):
        return is_scalar_of(given, 1.0) is not None
    if node.op_type == "Upsample" or inputs[3] is None:
        return False
    dims = context.dims(x)
    sizes = int_elements(context, inputs[3])
    if dims is None or sizes == UNKNOWN:
        return dims is not None and dims == context.dims(node.outputs[0])
    axes = ints(context, node, "axes", len(node.inputs))
    if axes == UNKNOWN:
        return False
    axes = tuple(range(len(dims))) if axes is None else normal_axes(axes, len(dims))
    return len(axes) == len(sizes) and all(0 <= a < len(dims) and dims[a] == size for a, size in zip(axes, sizes))


def _is_empty(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and tensor.size == 0
