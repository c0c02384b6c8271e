"""Concat of Concat along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Refuse, Rewrite, op, option
from graphopt.rewriting.guards import only_consumer

from ..arguments import integer, normal_axes

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class MergeConcats(Rewrite):
    """Join at once what a Concat, and one behind it along the same axis, join."""

    name = "merge-concats"
    kinds = frozenset({"onnx", "torch"})

    max_inputs: int = option(1024, "inputs that a merged Concat may have", minimum=2)

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import merge_concats

        merge_concats.run(context, self.max_inputs)

    def patterns(self) -> Sequence[Pattern]:
        return (op("Concat"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        outer = match.root
        inner: list[ir.Node] = []
        refused: Refuse | None = None
        inputs: list[ir.Value | None] = []
        for value in outer.inputs:
            source = value.producer() if value is not None else None
            if source is None or source.op_type != "Concat" or source.domain != "" or not _one_axis(editor.context, source, outer):
                inputs.append(value)
                continue
            try:
                only_consumer(value, "the joined value", outer)  # type: ignore[arg-type]
                if len(outer.inputs) + len(source.inputs) > self.max_inputs:
                    raise Refuse(f"it would have more than {self.max_inputs} inputs")
            except Refuse as refusal:
                refused = refusal
                inputs.append(value)
                continue
            inputs.extend(source.inputs)
            inner.append(source)
        if inner:
            match.nodes = [outer, *inner]
            editor.replace(outer.outputs[0], editor.node("Concat", inputs, dict(outer.attributes), name=outer.name))
        elif refused is not None:
            raise refused


def _one_axis(context: Context, inner: ir.Node, outer: ir.Node) -> bool:
    axes = integer(inner, "axis", 1), integer(outer, "axis", 1)
    if None in axes:
        return False
    if axes[0] == axes[1]:
        return True
    rank = context.rank(outer.outputs[0])
    normal = None if rank is None else normal_axes(axes, rank)  # type: ignore[arg-type]
    return normal is not None and normal[0] == normal[1]
