"""int8 without calibration: inputs of products are rounded when they come, each by its own range."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pass, Refuse, option, same_domain

from . import dynamic_attention, dynamic_products, dynamic_recurrent
from .arithmetic import TOP
from .dynamic_weights import Dynamic
from .instructions import weight_top

#: By domain and operator: what states it on integers.
_KINDS = {
    ("", "MatMul"): dynamic_products.product, ("", "Gemm"): dynamic_products.product,
    ("", "LSTM"): dynamic_recurrent.lstm, ("com.microsoft", "Attention"): dynamic_attention.attention,
}  # fmt: skip
#: Operators with weights that are better left alone, and why.
_NEVER = {
    "Conv": "ONNX Runtime's convolution on dynamically rounded inputs is several times slower than the float one",
    "ConvTranspose": "ONNX Runtime has no integer kernel of ConvTranspose",
    "GRU": "ONNX Runtime has no integer kernel of GRU",
    "RNN": "ONNX Runtime has no integer kernel of RNN",
}


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Run MatMul, Gemm, LSTM and Attention with constant weights on 8-bit integers; inputs are rounded when they come.

    Needs no calibration. Weights are symmetric int8, by output channel. An input becomes uint8 on the range that it has
    at this run, over its whole tensor; products that read one value share that. Written as DynamicQuantizeLinear and
    MatMulInteger, which the runtime fuses with the scaling behind them, and as DynamicQuantizeLSTM and QAttention.
    Products of two computed values stay in float: rounding both takes longer than the product.
    """

    name = "quantize-dynamic"
    effect = Effect.LOSSY
    narrows = True
    providers: ClassVar[frozenset[str]] = frozenset({"cpu"})
    measured = True

    granularity: str = option("channel", "one scale a channel of a weight or one a weight", choices=("channel", "tensor"))
    reduce_range: str = option("auto", "weights in 7 bits; auto: where the target's sums could overflow", choices=("auto", "yes", "no"))
    min_elements: int = option(16384, "smallest weight of a product that gains by it", minimum=1)
    min_recurrent: int = option(65536, "smallest recurrent weight of an LSTM that gains by it", minimum=1)

    def run(self, context: Context) -> None:
        isa = context.tools.target.isa if context.tools.target is not None else "unknown"
        top = weight_top(isa, False, self.reduce_range)
        dynamic = Dynamic(top, self.granularity == "channel", {"LSTM": self.min_recurrent}, self.min_elements)
        done: Counter[str] = Counter()
        for graph in list(context.index.scopes):
            for node in list(graph):
                state = next((s for (domain, name), s in _KINDS.items() if name == node.op_type and same_domain(node.domain, domain)), None)
                try:
                    if state is not None:
                        done[node.op_type] += self._stated(context, node, state, dynamic)
                    elif node.op_type in _NEVER and same_domain(node.domain, ""):
                        raise Refuse(_NEVER[node.op_type])
                except Refuse as refusal:
                    context.log.refuse(node, refusal.reason)
        self._tell(context, done, dynamic, isa)

    def _stated(self, context: Context, node: ir.Node, state, dynamic: Dynamic) -> bool:
        """Put integers in the place of a node; False: it is no match, or held back."""
        plan = state(context, node, dynamic)
        if plan is None or not context.log.permit(node):
            return False
        context.log.settled(node)
        editor = Editor(context, Match(node, [node]))
        plan(editor)
        editor.commit()
        return True

    def _tell(self, context: Context, done: Counter[str], dynamic: Dynamic, isa: str) -> None:
        between = f"{dynamic.between} products of two computed values stay in float" if dynamic.between else ""
        counts = ", ".join(f"{count} {name}" for name, count in done.most_common() if count)
        if not counts:
            context.log.note("nothing to quantize: no MatMul, Gemm, LSTM or Attention with constant weights of a size that pays")
            if between:
                context.log.note(between)
            return
        worst, bits = min(dynamic.snr), 8 if dynamic.top == TOP else 7
        inputs = f"{len(dynamic.rounded)} inputs rounded to uint8 when they come, " if dynamic.rounded else ""
        context.log.note(
            f"{counts} on integers, {inputs}weights in {bits} bits for {isa}; signal-to-noise ratio of the weights {worst[0]:.1f} dB "
            f"at worst ({worst[1]})" + (f"; {between}" if between else "")
        )


