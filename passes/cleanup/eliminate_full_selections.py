"""Gathering or scattering by indices that name every element, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Rewrite, constant_tensor, op, var

from ..arguments import in_function, integer, text

_LIMIT = 1 << 22  # bytes of indices that are looked at


@dataclass(frozen=True)
class EliminateFullSelections(Rewrite):
    """Remove GatherND and GatherElements that take everything in order, and ScatterND and ScatterElements that replace it."""

    name = "eliminate-full-selections"

    def patterns(self) -> Sequence[Pattern]:
        return (
            op(("GatherND", "GatherElements"), var("x"), var("indices")),
            op(("ScatterND", "ScatterElements"), var("x"), var("indices"), var("new")),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, x, context = match.root, match["x"], editor.context
        dims = None if in_function(context, x) else context.static_dims(x)
        tensor = constant_tensor(match["indices"])
        if dims is None or not dims or 0 in dims or tensor is None or tensor.nbytes > _LIMIT:
            return
        if integer(node, "batch_dims", 0) != 0 or text(node, "reduction", "none") != "none":
            return
        if node.op_type.endswith("ND"):
            whole = _all_places(tensor, dims)
        else:
            whole = _all_along(tensor, dims, integer(node, "axis", 0))
        if not whole:
            return
        taken = match.bound.get("new", x)
        if taken is x or _same(context, taken, dims):
            editor.replace(node.outputs[0], taken)


def _same(context: Context, value: ir.Value, dims: tuple[int, ...]) -> bool:
    return context.static_dims(value) == dims


def _all_places(tensor: ir.TensorProtocol, dims: tuple[int, ...]) -> bool:
    """Whether the indices of a GatherND or ScatterND name all places along the leading axes, in order."""
    shape = tuple(tensor.shape.numpy())
    depth = shape[-1] if shape else 0
    if not 0 < depth <= len(dims) or shape[:-1] != dims[:depth]:
        return False
    return np.array_equal(tensor.numpy(), np.stack(np.indices(dims[:depth]), axis=-1))


def _all_along(tensor: ir.TensorProtocol, dims: tuple[int, ...], axis: int | None) -> bool:
    """Whether the indices of a GatherElements or ScatterElements are those of all elements along `axis`."""
    if axis is None or not -len(dims) <= axis < len(dims) or tuple(tensor.shape.numpy()) != dims:
        return False
    shape = [1] * len(dims)
    shape[axis] = dims[axis]
    return bool((tensor.numpy() == np.arange(dims[axis]).reshape(shape)).all())
