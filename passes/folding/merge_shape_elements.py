"""Sizes that are taken from a Shape one by one and joined again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Editor, Match, Pattern, Rewrite, constant_tensor, op

from ..arguments import in_function

_FAR = 32  # nodes looked at before one Concat
_PARTS = frozenset(("Cast", "Concat", "Gather", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Unsqueeze"))


@dataclass(frozen=True)
class MergeShapeElements(Rewrite):
    """Take a shape that is put together from sizes of one value from that value's Shape: all of it, or a range of it."""

    name = "merge-shape-elements"

    def patterns(self) -> Sequence[Pattern]:
        return (op("Concat"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        node, context = match.root, editor.context
        output = node.outputs[0]
        if all(constant_tensor(v) is not None for v in node.inputs) or in_function(context, output):
            return
        if context.dtype(output) is not ir.DataType.INT64 or context.rank(output) != 1:
            return
        wanted = context.shapes.partial_value(output)
        if wanted is None or None in wanted or all(isinstance(e, int) for e in wanted):
            return
        for shape in _shapes_before(node):
            x = shape.inputs[0]
            dims = context.dims(x)
            if dims is None or x is None or shape.graph is not node.graph:
                continue
            if list(dims) == wanted and not shape.attributes:
                editor.replace(output, shape.outputs[0])
                return
            start = next((i for i in range(len(dims) - len(wanted) + 1) if list(dims[i : i + len(wanted)]) == wanted), None)
            if start is not None and (len(wanted) == len(dims) or context.opset(node) >= 15):
                part = {} if len(wanted) == len(dims) else {"start": start, "end": start + len(wanted)}
                editor.replace(output, editor.node("Shape", [x], part, like=output))
                return


def _shapes_before(node: ir.Node) -> Iterator[ir.Node]:
    """The Shape nodes that a Concat takes its elements from, the nearest first."""
    pending, seen = [node], {node}
    for at in pending:  # grows as it is walked
        if at.op_type == "Shape":
            yield at
            continue
        for value in at.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type in _PARTS and producer.domain == "" and producer not in seen and len(seen) < _FAR:
                seen.add(producer)
                pending.append(producer)
