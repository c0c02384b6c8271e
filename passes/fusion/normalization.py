"""Normalizations that are spelled out: the mean, the deviation from it, the variance, and the affine function behind.

Where the frameworks' exporters put them, with d = x - mean and r = 1 / sqrt(mean(d^2) + epsilon):

    d / sqrt(..) * scale + bias             torch, paddle2onnx
    d * r * scale + bias                    r is Reciprocal(Sqrt) or Pow(.., -0.5)
    d * (r * scale) + bias                  flax
    x * (r * scale) + (bias - mean * (r * scale))      Keras, tf2onnx
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Editor, Match, Refuse, constant_tensor, guards, op, var
from graphopt.rewriting.pattern import Pattern

from ..arguments import UNKNOWN, element_type, ints, normal_axes
from .reading import beside, claim, consumers, equals, goes_to, made_by, needs_opset, number, operand

TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""The types whose normalization operators compute in the same precision or a higher one."""


@dataclass
class Normalization:
    """A normalization that is spelled out.

    Attributes:
        x: what is normalized.
        mean: the ReduceMean of x; None where only the root mean square divides.
        axes: the axes of the mean, all counted from the front where the rank is known, else from the back.
        dims: the shape of x, where it is known.
        epsilon: what is added to the variance.
        nodes: the nodes between, in any order.
        last: the node whose output is the normalized value, affine function included as far as it was found.
        scale, bias: the affine function, as it broadcasts with x.
    """

    x: ir.Value
    mean: ir.Node | None
    axes: tuple[int, ...]
    dims: tuple[int | str, ...] | None
    epsilon: float
    nodes: list[ir.Node] = field(default_factory=list)
    last: ir.Node | None = None
    scale: ir.Value | None = None
    bias: ir.Value | None = None

    def sizes(self, context: Context) -> tuple[int, ...]:
        """The shape of the axes, which must be known."""
        assert self.dims is not None
        found = tuple(self.dims[a] for a in self.axes)
        if any(not isinstance(d, int) for d in found):
            raise Refuse("the size of the normalized axes is not known")
        return found  # type: ignore[return-value]


def root_patterns() -> tuple[Pattern, ...]:
    """The square root of a sum, from which `read` starts."""
    return (op(("Sqrt", "Pow"), op("Add", var("variance"), var("epsilon"), commutative=True, bind="add"), ..., bind="root"),)


def read(context: Context, match: Match, *, centred: bool) -> Normalization | None:
    """The normalization around the square root of a match; None: it is none.

    Raises:
        Refuse: it is one but for a detail that matters.
    """
    root, add = match["root"], match["add"]
    variance = next((v for v in add.inputs if made_by(v, "ReduceMean") is not None and beside(context, add, v) is not None), None)
    if variance is None or (root.op_type == "Pow" and not equals(root.inputs[1], -0.5)):
        return None
    epsilon = number(operand(add, variance))
    average = variance.producer()
    square = made_by(average.inputs[0], "Pow", "Mul")
    if square is None or epsilon is None or not 0 < epsilon < np.inf:
        return None
    deviation = square.inputs[0]
    if not (square.inputs[1] is deviation if square.op_type == "Mul" else equals(square.inputs[1], 2.0)):
        return None
    found = _start(context, deviation, average, epsilon, centred)
    if found is None:
        return None
    found.nodes += [add, average, square]
    return found if _finish(context, found, root, deviation) else None


def _start(context: Context, deviation: ir.Value, average: ir.Node, epsilon: float, centred: bool) -> Normalization | None:
    """What is normalized, and along which axes."""
    mean, x = None, deviation
    if centred:
        minus = made_by(deviation, "Sub")
        mean = made_by(minus.inputs[1], "ReduceMean") if minus is not None else None
        if mean is None or mean.inputs[0] is not minus.inputs[0]:
            return None
        x = mean.inputs[0]
    dims = context.dims(x)
    axes = _mean_axes(context, average, dims)
    if axes is None or (mean is not None and _mean_axes(context, mean, dims) != axes):
        return None
    return Normalization(x, mean, axes, dims, epsilon)


def _mean_axes(context: Context, node: ir.Node, dims: tuple[int | str, ...] | None) -> tuple[int, ...] | None:
    """The axes of a ReduceMean that keeps the dimensions, in order; None where they are not known."""
    keepdims = node.attributes.get("keepdims")
    axes = ints(context, node, "axes", 1)
    if axes in (None, (), UNKNOWN) or dims is None or (keepdims is not None and (keepdims.is_ref() or not keepdims.as_int())):
        return None
    found = normal_axes(axes, len(dims))  # type: ignore[arg-type]
    return tuple(sorted(found)) if found is not None else None


def _finish(context: Context, found: Normalization, root: ir.Node, deviation: ir.Value) -> bool:
    """Follow the square root to the end of the normalization."""
    spread = root.outputs[0]
    divided = goes_to(spread, "Div") if root.op_type == "Sqrt" else None
    if divided is not None and _is_deviation(found, divided.inputs[0], deviation) and divided.inputs[1] is spread:
        _tail(context, found, divided)
        return True
    inverse = spread
    if root.op_type == "Sqrt":
        inverted = goes_to(spread, "Reciprocal", "Div")
        if inverted is None or (inverted.op_type == "Div" and not (inverted.inputs[1] is spread and equals(inverted.inputs[0], 1.0))):
            return False
        found.nodes.append(inverted)
        inverse = inverted.outputs[0]
    if _product(context, found, inverse, deviation) or _keras(found, inverse, None):
        return True
    scaled = goes_to(inverse, "Mul")  # by the scale first
    scale = operand(scaled, inverse) if scaled is not None else None
    if scale is None or not _stands_before(scale, scaled):
        return False
    found.nodes.append(scaled)
    if _product(context, found, scaled.outputs[0], deviation, scale):
        return True
    return _keras(found, scaled.outputs[0], scale)


def _is_deviation(found: Normalization, value: ir.Value, deviation: ir.Value) -> bool:
    """Whether a value is x less its mean (x itself where there is no mean)."""
    if found.mean is None:
        return value is found.x
    minus = made_by(value, "Sub")
    if minus is None or minus.inputs[0] is not found.x or minus.inputs[1] is not found.mean.outputs[0]:
        return False
    found.nodes += [found.mean, minus, deviation.producer()]
    return True


def _product(context: Context, found: Normalization, inverse: ir.Value, deviation: ir.Value, scale: ir.Value | None = None) -> bool:
    """(x - mean) times the inverse, which holds the scale already where one is given."""
    times = goes_to(inverse, "Mul")
    other = operand(times, inverse) if times is not None else None
    if other is None or not _is_deviation(found, other, deviation):
        return False
    found.scale = scale
    _tail(context, found, times)
    return True


def _keras(found: Normalization, inverse: ir.Value, scale: ir.Value | None) -> bool:
    """x * inverse + (bias - mean * inverse)."""
    mean = found.mean
    if mean is None:
        return False
    users = consumers(inverse)
    by_x = [n for n in users if n.op_type == "Mul" and operand(n, inverse) is found.x]
    by_mean = [n for n in users if n.op_type == "Mul" and operand(n, inverse) is mean.outputs[0]]
    if len(users) != 2 or len(by_x) != 1 or len(by_mean) != 1:
        return False
    scaled, shift, bias = by_x[0].outputs[0], by_mean[0].outputs[0], None
    total, minus = goes_to(scaled, "Add", "Sub"), goes_to(shift, "Sub")
    if total is None or minus is None or minus.inputs[1] is not shift:
        return False
    if minus is total:
        if total.inputs[0] is not scaled:
            return False
    else:
        bias = minus.inputs[0]
        if total.op_type != "Add" or operand(total, scaled) is not minus.outputs[0] or not _stands_before(bias, minus):
            return False
    centred = [u for u in consumers(mean.outputs[0]) if u.op_type == "Sub"]
    found.nodes += [by_x[0], by_mean[0], minus, mean, *centred, total]
    found.scale, found.bias, found.last = scale, bias, total
    return True


def _tail(context: Context, found: Normalization, last: ir.Node) -> None:
    """Take the scale and the bias behind the normalized value, where they are there."""
    found.nodes.append(last)
    if found.scale is None:
        following = goes_to(last.outputs[0], "Mul")
        if following is not None and _is_parameter(context, found, operand(following, last.outputs[0]), following):
            found.scale, last = operand(following, last.outputs[0]), following
            found.nodes.append(last)
    following = goes_to(last.outputs[0], "Add") if found.mean is not None else None
    if following is not None and _is_parameter(context, found, operand(following, last.outputs[0]), following):
        found.bias, last = operand(following, last.outputs[0]), following
        found.nodes.append(last)
    found.last = last


def _is_parameter(context: Context, found: Normalization, value: ir.Value | None, user: ir.Node) -> bool:
    if value is None or not _stands_before(value, user):
        return False
    dims = context.dims(value)
    return dims is not None and found.dims is not None and len(dims) <= len(found.dims)


def _stands_before(value: ir.Value, user: ir.Node) -> bool:
    """Whether a value is there before any node of the graph runs."""
    return constant_tensor(value) is not None or (value.producer() is None and value.graph is user.graph)


def read_last_axes(context: Context, match: Match, *, centred: bool) -> Normalization | None:
    """The same over the last axes, of a type that the operator computes in; None: it is none."""
    found = read(context, match, centred=centred)
    if found is None or found.axes != tuple(range(found.axes[0], len(found.dims))):  # type: ignore[arg-type]
        return None
    element(context, found)
    return found


def state(editor: Editor, found: Normalization, op_type: str, version: int, inputs: list[ir.Value], attributes: dict[str, Any]) -> None:
    """Put the operator, which the opset `version` brought, in the place of what is spelled out."""
    last = found.last
    claim(editor.match, found.nodes, last)
    needs_opset(editor.context, last, op_type, version)
    output = last.outputs[0]
    editor.replace(output, editor.node(op_type, inputs, {**attributes, "epsilon": found.epsilon}, name=last.name, like=output))


def element(context: Context, found: Normalization) -> None:
    """Refuse types in which the operator would compute less precisely than its parts."""
    guards.require(element_type(context, found.x) in TYPES, "it is not known to be of float32 or float16")


def parameter(
    editor: Editor, value: ir.Value | None, dims: tuple[int, ...], *, axes: tuple[int, ...], rank: int, what: str, default: float
) -> ir.Value | None:
    """A scale or bias that is broadcast with x, as a tensor of shape `dims` along `axes`; None: it does not vary along these.

    A constant is reshaped or repeated where it has another shape; a value that a caller gives must have the shape already.
    """
    context = editor.context
    if value is None:
        dtype = editor.context.dtype(editor.match["root"].outputs[0])
        array = np.full(dims, default, dtype.numpy()) if dtype is not None else None
        return None if array is None else editor.constant(array, f"{editor.match.root.name or what}/{what}")
    shape = context.dims(value)
    if shape is None or len(shape) > rank:
        return None
    full = (1,) * (rank - len(shape)) + tuple(shape)
    if any(size != 1 and (axis not in axes or size != dims[axes.index(axis)]) for axis, size in enumerate(full)):
        return None
    if shape == dims:
        return value
    array = guards.float_constant(value, f"the {what}", TYPES)
    array = np.broadcast_to(array.reshape([full[a] for a in axes]), dims)
    return editor.constant(np.ascontiguousarray(array), value.name or what)
