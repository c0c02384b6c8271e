"""Gemm and the activation behind it as one operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.rewriting import Editor, Effect, Match, Pattern, Rewrite, guards, op

from .activations import PARAMETERS, parameters, require_unquantized
from .contrib import FLOAT, require_type, state

_TYPES = tuple(t for t in PARAMETERS if t != "HardSwish")


@dataclass(frozen=True)
class FuseGemmActivation(Rewrite):
    """Write Gemm and the activation behind it as FusedGemm, as ONNX Runtime does when it loads a model."""

    name = "fuse-gemm-activation"
    effect = Effect.ROUNDING
    providers = frozenset({"cpu"})

    def patterns(self) -> Sequence[Pattern]:
        return (op(_TYPES, op("Gemm", bind="gemm")),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        context, gemm = editor.context, match["gemm"]
        guards.same_graph(*match.nodes)
        guards.only_consumer(gemm.outputs[0], "the output of the Gemm", match.root)
        guards.require(context.opset(gemm) >= 7, "Gemm broadcasts in another way before opset 7")
        require_type(context, gemm.outputs[0], FLOAT)
        require_unquantized(gemm, match.root.outputs[0])
        given = {f"activation_{name}": value for name, value in parameters(match.root).items()}
        attributes = dict(gemm.attributes) | {"activation": match.root.op_type} | given
        state(editor, "FusedGemm", gemm.inputs, attributes, of=match.root)
