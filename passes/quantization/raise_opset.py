"""An older opset made 13, the first in which weights have a scale a channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Effect, Match, Pass, Refuse, guards, same_domain

from ..arguments import element_type
from ..arguments import integer as integer_attribute

_FROM, _TO = 7, 13

#: States what becomes of a node. What it asks the context for was true at the old opset.
Change = Callable[[Context, ir.Node, Editor], None]


@dataclass(frozen=True)
class RaiseOpset(Pass):
    """Write a model of opset 7 to 12 in opset 13, in which weights may have a scale for each channel.

    Attributes that became inputs, defaults that changed, names that were given up. Whole models only: where one operator
    has no equal in opset 13, nothing is changed. Local functions have opsets of their own and are left alone.
    """

    name = "raise-opset"
    effect = Effect.EXACT

    def run(self, context: Context) -> None:
        graph = context.model.graph
        before = context.model.opset_imports.get("", 0)
        if not _FROM <= before < _TO:
            return
        plans: list[tuple[ir.Node, Editor]] = []
        refused = False
        for inner, scope in list(context.index.scopes.items()):
            for node in inner if scope.function is None else ():
                if not same_domain(node.domain, ""):
                    continue
                editor = Editor(context, Match(node, []))
                try:
                    for since, change in _CHANGES.get(node.op_type, ()):
                        if before < since:
                            change(context, node, editor)
                except Refuse as refusal:
                    context.log.refuse(node, f"{refusal.reason}, so the opset stays {before}")
                    refused = True
                plans.append((node, editor))
        if refused or not context.log.permit(label=f"opset {before}"):
            for _, editor in plans:
                editor.discard()
            return
        context.model.opset_imports[""] = _TO
        graph.opset_imports[""] = _TO
        context.invalidate(shapes=True)
        for _, editor in plans:
            if editor.created or not editor.empty:
                editor.commit()
        context.log.note(f"opset {before} became {_TO}")
        context.invalidate(shapes=True)


# --- changes ----------------------------------------------------------------------------------------------------


def _to_input(name: str, place: int) -> Change:
    """A list of integers that was an attribute is input number `place`."""

    def change(context: Context, node: ir.Node, editor: Editor) -> None:
        value = guards.attribute(node, name)
        if value is None:
            return
        editor.set_input(node, place, editor.constant(list(value), f"{node.outputs[0].name}_{name}"))
        editor.set_attribute(node, name, None)

    return change


def _drop(name: str, allowed: object = None) -> Change:
    """An attribute is gone; where `allowed` is given, that is the only value that can be left out."""

    def change(context: Context, node: ir.Node, editor: Editor) -> None:
        value = guards.attribute(node, name)
        guards.require(allowed is None or value in (None, allowed), f"{node.op_type} with {name}={value} has no equal in later opsets")
        if value is not None:
            editor.set_attribute(node, name, None)

    return change


def _scalars(*names: str, place: int) -> Change:
    """Numbers that were attributes are inputs from `place` on, of the type of the first."""

    def change(context: Context, node: ir.Node, editor: Editor) -> None:
        for i, name in enumerate(names):
            value = guards.attribute(node, name)
            if value is None:
                continue
            dtype = element_type(context, node.inputs[0])
            if dtype not in guards.FLOATS:
                raise Refuse(f"{node.op_type} of an element type that is not known to be a float")
            editor.set_input(node, place + i, editor.constant(np.asarray(value, dtype.numpy()), f"{node.outputs[0].name}_{name}"))
            editor.set_attribute(node, name, None)

    return change


def _softmax(context: Context, node: ir.Node, editor: Editor) -> None:
    """Over all axes from `axis` on, as one: from opset 13 on it is over that axis alone."""
    axis = integer_attribute(node, "axis", 1)
    guards.require(axis is not None, "an axis that a function's caller decides")
    x = node.inputs[0]
    dims = context.dims(x)
    if dims is not None:
        axis = axis + len(dims) if axis < 0 else axis  # type: ignore[operator]
        if axis == len(dims) - 1 or (axis < len(dims) and all(d == 1 for d in dims[axis + 1 :])):
            editor.set_attribute(node, "axis", axis)
            return
    name = node.name or node.op_type
    flat = editor.node("Flatten", [x], {"axis": axis}, name=f"{name}/flat")
    editor.match.nodes.append(node)
    made = editor.node(node.op_type, [flat], {"axis": 1}, name=f"{name}/rows")
    shape = editor.node("Shape", [x], name=f"{name}/shape")
    editor.replace(node.outputs[0], editor.node("Reshape", [made, shape], name=name, like=node.outputs[0]))


def _renamed(op_type: str) -> Change:
    def change(context: Context, node: ir.Node, editor: Editor) -> None:
        editor.match.nodes.append(node)
        output = node.outputs[0]
        editor.replace(output, editor.node(op_type, list(node.inputs), dict(node.attributes), name=node.name, like=output))

    return change


def _resize(context: Context, node: ir.Node, editor: Editor) -> None:
    """Upsample and the first Resize scaled without a shift; the nearest was the one below, and above where it shrinks."""
    mode = guards.attribute(node, "mode", "nearest")
    attribute = guards.attribute(node, "scales")
    if attribute is not None:
        factors = np.asarray(attribute, np.float32)
        scales = editor.constant(factors, f"{node.outputs[0].name}_scales")
    else:
        scales = node.inputs[1]
        factors = guards.constant(scales, "the scale") if node.op_type == "Resize" and mode == "nearest" else np.ones(1)
    shrinks = bool((factors < 1).any())
    guards.require(not shrinks or bool((factors <= 1).all()), "a Resize that shrinks and stretches has no equal in later opsets")
    attributes = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if shrinks else "floor"}
    editor.match.nodes.append(node)
    roi = editor.constant(np.zeros(0, np.float32), f"{node.outputs[0].name}_roi")
    resized = editor.node("Resize", [node.inputs[0], roi, scales], attributes, name=node.name, like=node.outputs[0])
    editor.replace(node.outputs[0], resized)


def _slice(context: Context, node: ir.Node, editor: Editor) -> None:
    starts = guards.attribute(node, "starts")
    axes = guards.attribute(node, "axes")
    for place, name, value in ((1, "starts", starts), (2, "ends", guards.attribute(node, "ends")), (3, "axes", axes)):
        if value is not None:
            editor.set_input(node, place, editor.constant(list(value), f"{node.outputs[0].name}_{name}"))
            editor.set_attribute(node, name, None)


def _top_k(context: Context, node: ir.Node, editor: Editor) -> None:
    editor.set_input(node, 1, editor.constant([guards.attribute(node, "k")], f"{node.outputs[0].name}_k"))
    editor.set_attribute(node, "k", None)


def _no_mask(context: Context, node: ir.Node, editor: Editor) -> None:
    guards.unused_outputs(node)


def _never(context: Context, node: ir.Node, editor: Editor) -> None:
    raise Refuse(f"{node.op_type} means something else in later opsets")


#: operator -> (the opset that brought it, the change), in order.
_CHANGES: dict[str, tuple[tuple[int, Change], ...]] = {
    "BatchNormalization": ((9, _drop("spatial", 1)),),
    "Scan": ((9, _never),),
    "Upsample": ((13, _resize),),
    "Resize": ((11, _resize),),
    "Slice": ((10, _slice),),
    "TopK": ((10, _top_k),),
    "Dropout": ((10, _no_mask), (12, _drop("ratio"))),
    "Pad": ((11, _to_input("pads", 1)), (11, _scalars("value", place=2))),
    "Clip": ((11, _scalars("min", "max", place=1)),),
    "Scatter": ((11, _renamed("ScatterElements")),),
    "Split": ((13, _to_input("split", 1)),),
    "Squeeze": ((13, _to_input("axes", 1)),),
    "Unsqueeze": ((13, _to_input("axes", 1)),),
    "ReduceSum": ((13, _to_input("axes", 1)),),
    "Softmax": ((13, _softmax),),
    "LogSoftmax": ((13, _softmax),),
    "Hardmax": ((13, _softmax),),
}
