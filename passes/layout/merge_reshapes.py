"""A Reshape of what another operator has only reshaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Refuse, Rewrite, op, var
from graphopt.rewriting.guards import only_consumer

from ..arguments import UNKNOWN, int_elements, integer
from .targets import reshape_target

if TYPE_CHECKING:
    from graphopt.aten import AtenContext


@dataclass(frozen=True)
class MergeReshapes(Rewrite):
    """Make one Reshape of Reshape, Flatten, Squeeze and Unsqueeze in a row."""

    name = "merge-reshapes"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import merge_reshapes

        merge_reshapes.run(context)

    def patterns(self) -> Sequence[Pattern]:
        # All keep the elements and their order, so the last shape alone counts.
        inner = op(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), var("x"), ..., bind="inner")
        return (op("Reshape", inner, var("shape")), op(("Flatten", "Squeeze", "Unsqueeze"), inner, ..., bind="outer"))

    def rewrite(self, match: Match, editor: Editor) -> None:
        node = match.root
        if "outer" in match:
            self._by_shape(match, editor)
            return
        target = _target(editor.context, node, match["shape"])
        if target is None:
            return
        if isinstance(target, list):
            y = editor.node("Reshape", [match["x"], editor.constant(target, f"{node.name or 'Reshape'}/shape")], name=node.name)
        else:
            y = editor.node("Reshape", [match["x"], target], dict(node.attributes), name=node.name)
        editor.replace(node.outputs[0], y)

    def _by_shape(self, match: Match, editor: Editor) -> None:
        """What the operators at the end make is known by its shape alone."""
        outer, inner, x, context = match.root, match["inner"], match["x"], editor.context
        kinds = {outer.op_type, inner.op_type}
        before, after = context.dims(x), context.dims(outer.outputs[0])
        if before is None or after is None or (len(kinds) == 1 and kinds <= {"Squeeze", "Unsqueeze"}):
            return  # of one kind they are one of it
        target = reshape_target(context, before, after)
        if target is None:
            return
        only_consumer(inner.outputs[0], "the value between", outer)
        shape = editor.constant(target, f"{outer.name or outer.op_type}/shape")
        editor.replace(outer.outputs[0], editor.node("Reshape", [x, shape], name=outer.name))


def _target(context: Context, node: ir.Node, shape: ir.Value) -> ir.Value | list[int] | None:
    """The shape to give to any tensor of the same elements: the one that is there, or a new one; None: not known."""
    allowzero = integer(node, "allowzero", 0)
    elements = int_elements(context, shape)
    if allowzero is None:
        return None
    if elements != UNKNOWN and (allowzero or 0 not in elements):
        return shape
    dims = context.dims(node.outputs[0])  # a zero copies a dimension of the tensor that goes
    known = dims is not None and 0 not in dims and sum(not isinstance(d, int) for d in dims) <= 1
    if known:
        return [d if isinstance(d, int) else -1 for d in dims]  # type: ignore[union-attr]
    if elements == UNKNOWN:
        return None
    raise Refuse("its shape copies dimensions that are not known")
