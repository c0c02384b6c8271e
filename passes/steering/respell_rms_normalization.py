"""A root mean square normalization in the spelling that the runtime recognizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, constant_tensor, guards

from ..arguments import element_type
from ..fusion.normalization import read, root_patterns
from ..fusion.reading import claim


@dataclass(frozen=True)
class RespellRmsNormalization(Rewrite):
    """Write x Reciprocal(sqrt(mean(x^2) + epsilon)) scale as x / sqrt(mean(x^2) + epsilon) scale, which the runtime fuses.

    For opsets before 23, which has RMSNormalization. ONNX Runtime 1.32 makes one operator of the second spelling (Pow,
    ReduceMean, Add, Sqrt, Div, Mul by a constant scale over the last axis). It leaves the first, which torch's new
    exporter writes, as seven, and so those with Pow(.., -0.5) or with the scale before x. Measured on x86-64 with
    AVX-512 and one thread: 1.9 to 2.4 times as fast on the normalization and the Add before it, 1.02 on a small Llama.
    """

    name = "respell-rms-normalization"
    effect = Effect.ROUNDING

    def patterns(self) -> Sequence[Pattern]:
        return root_patterns()

    def rewrite(self, match: Match, editor: Editor) -> None:
        context = editor.context
        found = read(context, match, centred=False)
        if found is None or context.opset(match.root) >= 23:
            return
        if any(n.op_type == "Div" for n in found.nodes):
            return  # x / sqrt(..) and x (1 / sqrt(..)): the runtime knows both
        claim(match, found.nodes, found.last)
        rank, scale = len(found.dims), found.scale
        guards.require(found.axes == (rank - 1,), "the runtime has no operator for other axes than the last")
        tensor = constant_tensor(scale)
        guards.require(tensor is not None and len(tensor.shape) == 1, "its scale is not a constant vector, which alone is fused")
        guards.require(context.dims(scale) == (found.dims[-1],), "its scale is not known to be as long as the last axis")
        guards.require(element_type(context, found.x) == ir.DataType.FLOAT, "it is not known to be of float32")
        x, like = found.x, found.last.outputs[0]
        square = editor.node("Pow", [x, editor.constant(np.float32(2), "two")], like=like)
        if context.opset(match.root) >= 18:
            mean = editor.node("ReduceMean", [square, editor.constant([-1], "last_axis")], {"keepdims": 1})
        else:
            mean = editor.node("ReduceMean", [square], {"axes": [-1], "keepdims": 1})
        shifted = editor.node("Add", [mean, editor.constant(np.float32(found.epsilon), "epsilon")])
        normal = editor.node("Div", [x, editor.node("Sqrt", [shifted])], like=like)
        editor.replace(like, editor.node("Mul", [normal, scale], name=found.last.name or None, like=like))
