"""float16 or bfloat16 throughout, but where numbers would be lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Effect, Pass, constant_tensor, option

from .half_borders import Borders, is_float, needless
from .half_kernels import obstacle
from .half_ranges import Ranges

_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_BEHIND = 64  # operators before one that needs exact numbers
_WEIGHT = 4096  # elements of a constant; what comes out of a product with more is not exact anyhow


@dataclass(frozen=True)
class ConvertFloat16(Pass):
    """Compute in float16 or bfloat16; what calibration shows to lose too much stays in float32.

    In float32 stay values beyond 65504, small denominators, sums that may overflow on the way, angles and counts that
    need exact numbers, constants that would lose digits, what lacks a kernel, and subgraphs. Casts stand only between
    the two, one a value; inputs and outputs of the model keep their types.
    """

    name = "convert-float16"
    effect = Effect.LOSSY
    calibrates = True
    measured = True
    unmeasured = "leave-out"
    kept_on = frozenset({"cuda", "tensorrt", "rocm", "migraphx", "dml", "coreml", "webgpu"})

    type: str = option("float16", "the type; of bfloat16 only what the runtime has a kernel for is converted", choices=tuple(_TYPES))
    headroom: float = option(4.0, "how many times as large as on the calibration samples a value may get", minimum=1.0)
    keep: str = option("", "operator types that stay in float32, separated by +")

    def run(self, context: Context) -> None:
        to = _TYPES[self.type]
        candidates, kept = self._candidates(context, to)
        if not candidates:
            why = Counter(kept.values()).most_common(1)
            context.log.note("nothing to convert" + (f": {why[0][0]}" if why else ": no operator computes in float32"))
        elif to == ir.DataType.FLOAT16:
            kept |= self._objections(context, candidates)
        for node, reason in kept.items():
            context.log.refuse(node, reason)
        narrow = {n for n in candidates if n not in kept}
        aside = needless(context, narrow)
        chosen: set[ir.Node] = set()
        for node in candidates:
            if node in narrow and node not in aside and context.log.permit(node):
                context.log.settled(node)
                context.log.provenance([node], [node])
                chosen.add(node)
        if chosen:
            borders = Borders(context, chosen, to)
            borders.carry_out()
            beside = f", {len(aside)} more because Casts around them would cost more" if aside else ""
            context.log.note(
                f"{len(chosen)} operators in {self.type} with {borders.constants} constants, {len(kept)} stay in float32{beside}; "
                f"{borders.casts} Casts between the two"
            )

    def _candidates(self, context: Context, to: ir.DataType) -> tuple[list[ir.Node], dict[ir.Node, str]]:
        """The nodes of the main graph that compute in float32 and could in `to`; and those that could not, with why."""
        found: list[ir.Node] = []
        kept: dict[ir.Node, str] = {}
        wanted = {name.strip() for name in self.keep.split("+") if name.strip()}
        for node in context.model.graph:
            if node.op_type == "Constant" or not any(v is not None and is_float(context, v) for v in (*node.inputs, *node.outputs)):
                continue
            reason = f"the option keep names {node.op_type}" if node.op_type in wanted else obstacle(context, node, to)
            if reason is None:
                found.append(node)
            else:
                kept[node] = reason
        return found, kept

    def _objections(self, context: Context, candidates: list[ir.Node]) -> dict[ir.Node, str]:
        """The candidates that would lose too much, with why."""
        values = {v: None for n in candidates for v in (*n.inputs, *n.outputs) if v is not None and is_float(context, v)}
        values = {v: None for v in values if constant_tensor(v) is None and not (v.is_initializer() and not v.is_graph_input())}
        ranges = Ranges(context, context.calibrate(values, method="min-max"), self.headroom)
        kept = {node: reason for node in candidates if (reason := ranges.objection(node)) is not None}
        allowed = set(candidates)
        for node in [n for n in kept if ranges.exact(n)]:
            # Numbers that must be exact must come from exact ones.
            front = [node]
            for _ in range(_BEHIND):
                before = (p for n in front for v in n.inputs if v is not None and (p := v.producer()) is not None)
                front = [p for p in before if p in allowed and p not in kept and not _has_weight(p)]
                if not front:
                    break
                kept.update(dict.fromkeys(front, f"what it computes must be exact for {node.op_type} {node.name!r}"))
        return kept




def _has_weight(node: ir.Node) -> bool:
    return any((tensor := constant_tensor(value)) is not None and tensor.size > _WEIGHT for value in node.inputs)
