"""`merge-casts` on ATen graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir import DataType

from graphopt.rewriting import Refuse

from ..layout.merge_casts import holds, same_result
from .reading import applied_to

if TYPE_CHECKING:
    from torch.fx import Node

    from graphopt.aten import AtenContext, AtenEditor

_CAST = "aten._to_copy.default"
_TYPES = {
    "bool": DataType.BOOL, "int8": DataType.INT8, "uint8": DataType.UINT8, "int16": DataType.INT16, "uint16": DataType.UINT16,
    "int32": DataType.INT32, "uint32": DataType.UINT32, "int64": DataType.INT64, "uint64": DataType.UINT64,
    "float16": DataType.FLOAT16, "bfloat16": DataType.BFLOAT16, "float32": DataType.FLOAT, "float64": DataType.DOUBLE,
}  # fmt: skip


def run(context: AtenContext) -> None:
    """Cast at once where the type in between holds every value."""
    from graphopt.aten import drive

    drive(context, (_CAST,), _rewrite)


def _rewrite(outer: Node, editor: AtenEditor) -> None:
    context = editor.context
    inner = applied_to(outer, context)
    if context.op(inner) != _CAST or not (_only_type(outer, context) and _only_type(inner, context)):
        return
    x = applied_to(inner, context)
    source, between, target = (_TYPES.get(context.dtype(n) or "") for n in (x, inner, outer))
    if source is None or between is None or target is None or between in (source, target):
        return
    if not holds(between, source):
        raise Refuse(f"{between.name} in between does not hold every {source.name} exactly")
    if not same_result(source, target):
        raise Refuse(f"casts to {target.name} from {source.name} and from {between.name} may differ")
    editor.replace(outer, x if source == target else editor.call(_CAST, [x], {"dtype": outer.kwargs["dtype"]}))


def _only_type(node: Node, context: AtenContext) -> bool:
    """Whether a cast changes the type and neither device nor layout."""
    x = applied_to(node, context)
    return node.kwargs.get("dtype") is not None and node.kwargs.get("memory_format") is None and context.device(x) == context.device(node)
