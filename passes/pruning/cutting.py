"""Cutting chosen places out of a model: weights, shapes, and the operators that state sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.model import DECLARED, INFERRED, KEPT
from graphopt.rewriting import Context, constant_array, use_count

from .channels import Places
from .ties import is_depthwise


def cut(context: Context, places: Places, gone: Callable[[int], bool]) -> int:
    """Take every place for which `gone` holds out of the model; the number of bytes that weights lose.

    Places that are tied go together; none of them may be fixed.
    """
    kept: dict[ir.Value, dict[int, np.ndarray]] = {}
    for (value, axis), reach in places.axes.items():
        keep = np.fromiter((not gone(p) for p in reach), bool, len(reach))
        if not keep.all():
            kept.setdefault(value, {})[axis] = keep
    depthwise = [n for n in context.index.of_types(("Conv",)) if n.inputs[1] in kept and is_depthwise(n)]
    saved = 0
    for value, axes in kept.items():
        _remember(value, axes)
        if value.is_initializer():
            saved += _cut_weight(value, axes)
        elif value.shape is not None:
            dims = list(value.shape)
            for axis, keep in axes.items():
                dims[axis] = int(keep.sum())
            value.shape = ir.Shape(dims)
            value.meta.pop(DECLARED, None)
            value.meta[INFERRED] = True
    for node in depthwise:
        keep = kept.get(node.inputs[0], {}).get(1)  # type: ignore[arg-type]
        if keep is not None:
            node.attributes["group"] = ir.AttrInt64("group", int(keep.sum()))
    for node in context.index.of_types(("Reshape",)):
        if node.outputs[0] in kept:
            _state_shape(context, node, kept[node.outputs[0]])
    for node in context.index.of_types(("Split",)):
        if any(v in kept for v in node.outputs):
            _state_sizes(context, places, node, kept)
    context.invalidate(shapes=True)
    return saved


def _remember(value: ir.Value, axes: dict[int, np.ndarray]) -> None:
    """Note what is left of a value, over what there was when the model was loaded."""
    known: dict[int, np.ndarray] = value.meta.setdefault(KEPT, {})
    for axis, keep in axes.items():
        whole = known.get(axis)
        if whole is None:
            known[axis] = keep
        else:
            left = whole.copy()
            left[np.flatnonzero(whole)] = keep
            known[axis] = left


def _cut_weight(value: ir.Value, axes: dict[int, np.ndarray]) -> int:
    array = constant_array(value)
    assert array is not None, value.name
    before = array.nbytes
    for axis, keep in axes.items():
        array = np.compress(keep, array, axis=axis)
    array = np.ascontiguousarray(array)
    value.const_value = ir.Tensor(array, dtype=value.const_value.dtype, name=value.name)  # type: ignore[union-attr]
    value.shape = ir.Shape(array.shape)
    value.meta.pop(DECLARED, None)
    return before - array.nbytes


def _state_shape(context: Context, node: ir.Node, axes: dict[int, np.ndarray]) -> None:
    """A Reshape whose target names lengths that changed."""
    target = constant_array(node.inputs[1])
    assert target is not None
    new = target.copy()
    for axis, keep in axes.items():
        if new[axis] > 0:
            new[axis] = int(keep.sum())
    if not np.array_equal(new, target):
        _set_constant(context, node, 1, new)


def _state_sizes(context: Context, places: Places, node: ir.Node, kept: dict[ir.Value, dict[int, np.ndarray]]) -> None:
    """A Split, whose parts may be of other lengths now, and of unlike ones."""
    rank = len(places.dims(node.inputs[0]) or ())  # type: ignore[arg-type]
    axis = node.attributes.get_int("axis", 0) % rank
    if not any(axis in kept.get(v, {}) for v in node.outputs):
        return
    sizes = []
    for value in node.outputs:
        keep = kept.get(value, {}).get(axis)
        reach = places.of(value, axis)
        sizes.append(int(keep.sum()) if keep is not None else len(reach or ()))
    if context.opset(node) >= 13:
        node.attributes.pop("num_outputs", None)
        _set_constant(context, node, 1, np.asarray(sizes, np.int64))
    else:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)


def _set_constant(context: Context, node: ir.Node, place: int, array: np.ndarray) -> None:
    graph = node.graph
    assert graph is not None
    old = node.inputs[place] if place < len(node.inputs) else None
    name = context.index.fresh_name(f"{old.name if old is not None and old.name else node.name}_pruned")
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.INT64), const_value=ir.Tensor(array, name=name))
    value.meta[INFERRED] = True
    graph.initializers.add(value)
    if place >= len(node.inputs):
        node.resize_inputs(place + 1)
    node.replace_input_with(place, value)
    if old is not None and old.is_initializer() and not use_count(old) and not old.is_graph_input():
        old.graph.initializers.pop(old.name)  # type: ignore[union-attr]
