"""A Softmax over masked scores, of which the masked ones stay far below the others but not out of reach of the exponential."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Editor, Effect, Match, Pattern, Refuse, Rewrite, constant_tensor, guards, op, same_domain, scalar_of, var

from ..arguments import integer

# exp(-64) is 2e-28: nothing beside a sum of at least 1 in float32, and far from the denormal numbers (below 1e-38).
_REACH = 64.0
# A score that is lowered by less may still count, and its exponential is no denormal number.
_MASKED = -100.0
_STEPS = 64  # nodes of what makes a mask
_LARGEST = 1 << 26  # bytes of a mask that is looked through

_COMPARISONS = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Trilu"))
_MADE_OF_OTHERS = _COMPARISONS | frozenset((
    "Add", "And", "Cast", "Concat", "ConstantOfShape", "CumSum", "Div", "Expand", "Gather", "Identity", "Mul", "Neg", "Not", "Or", "Range",
    "Reshape", "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where", "Xor",
))  # fmt: skip


@dataclass(frozen=True)
class BoundMaskedSoftmax(Rewrite):
    """Raise scores that a fixed mask hides to 64 below the highest of their row, where the runtime's exponential is fast (for CPUs).

    A causal mask takes scores to the lowest number there is. ONNX Runtime's Softmax then underflows on the way to zero,
    which costs an x86-64 processor some hundred cycles for every few elements: 7 times the time of the Softmax.
    Max(scores, ReduceMax(scores) - 64) changes no score that counts: a probability of 0 becomes one below 2e-28, and the
    others keep their bits, since the sum that they are divided by, at least 1, does not feel it. Only for masks that
    constants and shapes determine: one for padding may hide nothing. Measured under ONNX Runtime 1.32 on x86-64 with
    AVX-512, one thread, the Softmax with its mask: 2.9 / 2.9 / 2.3 / 1.6 times as fast for 12 heads at sequences of 128 /
    64 / 32 / 16, and 1 us slower at 1; a small Llama 1.14 / 1.08 / 1.01 at 128 / 64 / 16, GPT-2 1.03 at 128.
    """

    name = "bound-masked-softmax"
    effect = Effect.ROUNDING
    providers = frozenset({"cpu"})
    measured = True

    def patterns(self) -> Sequence[Pattern]:
        return (
            op("Softmax", op("Add", var("a"), var("b"), bind="masking"), bind="softmax"),
            op("Softmax", op("Where", var("choice"), var("a"), var("b"), bind="masking"), bind="softmax"),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, softmax, masking = editor.context, match["softmax"], match["masking"]
        scores = masking.outputs[0]
        if constant_tensor(scores) is not None:
            return
        masks = [_mask(v) for v in ((match["choice"],) if masking.op_type == "Where" else (match["a"], match["b"]))]
        if masking.op_type == "Where":
            hidden = [value for v in (match["a"], match["b"]) if (value := scalar_of(v)) is not None]
            if not any(value <= _MASKED for value in hidden):
                return
            if masks[0] is None:
                raise Refuse("what it masks depends on the input, and where that is nothing this would only cost")
            guards.require(masks[0].mixed, "its mask may hide nothing")
        elif not any(m is not None and m.mixed and m.lowest <= _MASKED for m in masks):
            return
        guards.same_graph(softmax, masking)
        guards.require(context.dtype(scores) == ir.DataType.FLOAT, "it is not known to be of float32")
        rank, axis, opset = context.rank(scores), integer(softmax, "axis", -1), context.opset(softmax)
        guards.require(opset >= 13, "Softmax is over several axes before opset 13")
        guards.require(axis == -1 or (rank is not None and axis == rank - 1), "it is not known to be over the last axis")
        name = softmax.name or "Softmax"
        axes = {"axes": [-1]} if opset < 18 else {}
        operands = [scores] if axes else [scores, editor.constant([-1], f"{name}/axis")]
        highest = editor.node("ReduceMax", operands, {**axes, "keepdims": 1}, name=f"{name}/highest")
        lowest = editor.node("Sub", [highest, editor.constant(np.float32(_REACH), f"{name}/reach")], name=f"{name}/lowest")
        bounded = editor.node("Max", [scores, lowest], name=f"{name}/bounded", like=scores)
        output = softmax.outputs[0]
        editor.replace(output, editor.node("Softmax", [bounded], dict(softmax.attributes), name=softmax.name or None, like=output))


@dataclass(frozen=True)
class _Mask:
    """What is known of a mask that does not depend on the input: its lowest constant; `mixed`: it hides some and some not."""

    lowest: float
    mixed: bool


def _mask(value: ir.Value) -> _Mask | None:
    """A mask that constants and shapes determine, or None."""
    pending, seen = [value], set()
    lowest, mixed = np.inf, False
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        tensor = constant_tensor(current)
        if tensor is not None:
            if tensor.nbytes > _LARGEST or tensor.dtype not in _READABLE:
                return None
            array = tensor.numpy()
            if array.size:
                low, high = float(array.min()), float(array.max())
                lowest = min(lowest, low)
                mixed |= low < high and (tensor.dtype == ir.DataType.BOOL or low <= _MASKED < high)
            continue
        node = current.producer()
        if node is None or not same_domain(node.domain, "") or len(seen) > _STEPS:
            return None
        if node.op_type in ("Shape", "Size"):
            continue
        if node.op_type not in _MADE_OF_OTHERS:
            return None
        mixed |= node.op_type in _COMPARISONS
        fill = node.attributes.get("value")
        if node.op_type == "ConstantOfShape" and fill is not None and not fill.is_ref():
            lowest = min(lowest, float(fill.as_tensor().numpy().min()))
        pending.extend(v for v in node.inputs if v is not None)
    return _Mask(lowest, mixed)


_READABLE = frozenset((ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.DOUBLE))
