"""What the rewrites into ONNX Runtime's own operators share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, constant_tensor, guards

from ..arguments import element_type
from ..fusion import gelu

DOMAIN = "com.microsoft"

FLOAT = frozenset({ir.DataType.FLOAT})
FLOAT_OR_HALF = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
"""The runtime has kernels of some operators for float32 on CPUs and for both on GPUs; on CPUs it casts the others."""


def state(
    editor: Editor,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    of: ir.Node,
) -> ir.Value:
    """Put an operator of the runtime's domain in the place of what ends with `of`; its output."""
    old = of.outputs[0]
    given = list(inputs)
    while given[-1] is None:
        given.pop()
    new = editor.node(op_type, given, attributes, domain=DOMAIN, name=of.name or None, like=old)
    editor.replace(old, new)
    return new


def require_type(context: Context, value: ir.Value, types: frozenset[ir.DataType] = FLOAT_OR_HALF) -> ir.DataType:
    """The element type of a value; refuses one that the runtime has no kernel for."""
    dtype = element_type(context, value)
    names = " or ".join("float32" if t is ir.DataType.FLOAT else t.name.lower() for t in sorted(types))
    guards.require(dtype in types, f"it is not known to be of {names}")
    return dtype  # type: ignore[return-value]


def state_gelu(match: Match, editor: Editor, op_type: str) -> None:
    """Put the runtime's operator in the place of a GELU that is spelled out; from opset 20 on Gelu says the same to every runtime."""
    found = gelu.read(editor.context, match)
    if found is None or editor.context.opset(match.root) >= 20:
        return
    x, last = found
    require_type(editor.context, x)
    state(editor, op_type, [x], of=last)


def vector_of(context: Context, value: ir.Value, length: int | str | None) -> bool:
    """Whether a value is a vector of a known number of elements."""
    return isinstance(length, int) and context.dims(value) == (length,)


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is known before the model runs."""
    return constant_tensor(value) is not None
