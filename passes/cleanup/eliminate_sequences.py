"""Sequences of tensors that are put together or split up, and taken apart again at known places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Pattern, Refuse, Rewrite, constant_tensor, op, scalar_of, var
from graphopt.rewriting.guards import require

from ..arguments import integer

_PARTS = 64  # more outputs than this belong in a sequence


@dataclass(frozen=True)
class EliminateSequences(Rewrite):
    """Turn SplitToSequence into Split, and take SequenceAt and ConcatFromSequence of known sequences apart.

    Exporters write `torch.split` and `torch.unbind` as sequences, which no runtime optimizes across.
    """

    name = "eliminate-sequences"

    def patterns(self) -> Sequence[Pattern]:
        made = op("SequenceConstruct", bind="made")
        return (
            op("SplitToSequence", var("x"), ..., bind="split"),
            op("SequenceAt", made, var("position")),
            op("ConcatFromSequence", made),
        )

    def rewrite(self, match: Match, editor: Editor) -> None:
        if "split" in match:
            _split(match, editor)
        elif "position" in match:
            elements = match["made"].inputs
            position = _position(match["position"], len(elements))
            if position is not None:
                editor.replace(match.root.outputs[0], elements[position])
        else:
            axis = integer(match.root, "axis", 0)
            if axis is not None and integer(match.root, "new_axis", 0) == 0:
                editor.replace(match.root.outputs[0], editor.node("Concat", list(match["made"].inputs), {"axis": axis}))


def _position(value: ir.Value, length: int) -> int | None:
    """Which element a SequenceAt takes, counted from the front; None: not known, or there is no such element."""
    position = scalar_of(value)
    if position is None or not -length <= position < length:
        return None
    return int(position) % length


def _split(match: Match, editor: Editor) -> None:
    node, x, context = match.root, match["x"], editor.context
    sequence = node.outputs[0]
    uses = sequence.uses()
    if not uses:
        return
    require(not sequence.is_graph_output(), "the sequence is also a graph output")
    other = next((u.node.op_type for u in uses if u.node.op_type != "SequenceAt"), None)
    require(other is None, f"{other} takes the whole sequence")
    sizes, axis = _sizes(context, node, x)
    positions = {u.node: _position(u.node.inputs[1], len(sizes)) for u in uses}
    require(None not in positions.values(), "it is not known which elements are taken")
    outputs = _nodes(editor, node, x, sizes, axis)
    squeezed = integer(node, "keepdims", 1) == 0
    taken: dict[int, ir.Value] = {}
    for taker, position in positions.items():
        if position not in taken:
            taken[position] = _squeezed(editor, outputs[position], axis) if squeezed else outputs[position]
        editor.replace(taker.outputs[0], taken[position])
        match.nodes.insert(0, taker)


def _sizes(context: Context, node: ir.Node, x: ir.Value) -> tuple[list[int], int]:
    """The sizes of the parts, and the axis counted from the front."""
    axis, dims = integer(node, "axis", 0), context.dims(x)
    if axis is None or dims is None or integer(node, "keepdims", 1) is None:
        raise Refuse("the rank of what is split is not known")
    if integer(node, "keepdims", 1) == 0:  # the standard ignores it where sizes are given; ONNX Runtime does not
        require(len(node.inputs) < 2 or node.inputs[1] is None, "it has sizes and drops the axis too, which runtimes read differently")
    axis %= len(dims)
    size = dims[axis]
    given = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = constant_tensor(given)
    require(given is None or tensor is not None, "the sizes of the parts are not constant")
    if tensor is not None and len(tensor.shape) == 1:
        sizes = [int(s) for s in tensor.numpy()]
    else:
        if not isinstance(size, int):
            raise Refuse("the size of the axis that is split is not known")
        step = 1 if tensor is None else int(tensor.numpy().item())
        require(step > 0, "the sizes of the parts are not positive")
        sizes = [min(step, size - start) for start in range(0, size, step)]
    require(0 < len(sizes) <= _PARTS, f"it splits into {len(sizes)} parts")
    require(not isinstance(size, int) or sum(sizes) == size, "the parts do not make up the axis")
    return sizes, axis


def _nodes(editor: Editor, node: ir.Node, x: ir.Value, sizes: list[int], axis: int) -> list[ir.Value]:
    name = node.name or "Split"
    if editor.context.opset(node) < 13:
        made = editor.node("Split", [x], {"axis": axis, "split": sizes}, outputs=len(sizes), name=name)
    else:
        made = editor.node("Split", [x, editor.constant(sizes, f"{name}/sizes")], {"axis": axis}, outputs=len(sizes), name=name)
    return made if isinstance(made, list) else [made]


def _squeezed(editor: Editor, value: ir.Value, axis: int) -> ir.Value:
    if editor.context.opset(editor.match.root) < 13:
        return editor.node("Squeeze", [value], {"axes": [axis]})
    return editor.node("Squeeze", [value, editor.constant([axis], "axes")])
