"""Recurrent operators that are told to start from zero, which they do anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, constant_tensor, op, var

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
# Operators that make nothing but zeros of zeros, and the inputs that must be.
_MOVING = frozenset(("Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"))
_DEPTH = 16
_LIMIT = 1 << 20  # bytes; no initial state of zeros is larger


@dataclass(frozen=True)
class EliminateZeroStates(Rewrite):
    """Leave out initial states of LSTM, GRU and RNN that are all zero: that is what they start from without one."""

    name = "eliminate-zero-states"

    def patterns(self) -> Sequence[Pattern]:
        return (op(tuple(_STATES), var("x"), ...),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node = match.root
        for index in _STATES[node.op_type]:
            state = node.inputs[index] if index < len(node.inputs) else None
            if state is not None and _all_zero(state):
                editor.set_input(node, index, None)


def _all_zero(value: ir.Value) -> bool:
    """Whether every element is known to be +0.0, whatever the shape."""
    pending = [value]
    for _ in range(_DEPTH):
        if not pending:
            return True
        at = pending.pop()
        node = at.producer()
        tensor = constant_tensor(at)
        if tensor is not None:
            if not _zeros(tensor):
                return False
        elif node is None or node.domain not in ("", "ai.onnx"):
            return False
        elif node.op_type in _MOVING:
            pending.append(node.inputs[0])  # type: ignore[arg-type]
        elif node.op_type == "Concat":
            pending.extend(v for v in node.inputs if v is not None)
        elif node.op_type == "ConstantOfShape":
            fill = node.attributes.get("value")
            if fill is not None and (fill.is_ref() or not _zeros(fill.as_tensor())):
                return False
        else:
            return False
    return not pending


def _zeros(tensor: ir.TensorProtocol) -> bool:
    if not tensor.dtype.is_floating_point() or tensor.nbytes > _LIMIT:
        return False
    array = np.asarray(tensor.numpy())
    return not array.any() and not np.signbit(array).any()
