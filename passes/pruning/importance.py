"""How much each unit of a group counts for: by the size of its weights, by normalization, or by what the outputs feel of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from graphopt.model import SALIENCE
from graphopt.rewriting import Context, Refuse, constant_array

from .channels import Places
from .groups import Group

_FLOATS = "fV"  # kinds of numpy's floats; bfloat16 comes as void

IMPORTANCE = ("l1", "l2", "scale", "taylor")


def measure(kind: str, context: Context, group: Group, places: Places) -> np.ndarray:
    """The importance of each unit of a group, float64 [units]; raises Refuse where it is not to be had."""
    if kind == "scale":
        return scale(group, places, context)
    if kind == "taylor":
        return taylor(group, places)
    return magnitude(group, places, 1 if kind == "l1" else 2)


def magnitude(group: Group, places: Places, order: int) -> np.ndarray:
    """The importance of each unit: the norm of the weights that make it, all weights of the group taken together.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets", with L1; L2 with `order` 2. float64 [units].
    """
    number = {root: i for i, root in enumerate(group.units)}
    total = np.zeros(len(group.units))
    for value, axis in group.makers:
        array = constant_array(value)
        if array is None or array.dtype.kind not in _FLOATS:
            continue
        rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
        per_channel = (np.abs(rows) ** order).sum(axis=1)
        for channel, place in enumerate(places.axes[value, axis]):
            unit = number.get(places.root(place))
            if unit is not None:
                total[unit] += per_channel[channel]
    return total ** (1 / order)

    def of(value: ir.Value, axis: int) -> np.ndarray | None:
        array = constant_array(value)
        if array is None or array.dtype.kind not in _FLOATS:
            return None
        rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
        return (np.abs(rows) ** order).sum(axis=1)

    return _by_unit(group, places, group.makers, of) ** (1 / order)


def scale(group: Group, places: Places, context: Context) -> np.ndarray:
    """The importance of each unit: the scale of BatchNormalization on its channels, summed by absolute value.

    Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming". Raises Refuse where no
    BatchNormalization stands on them.
    """
    units = set(group.units)
    scales = [
        (node.inputs[1], 0)
        for node in context.index.of_types(("BatchNormalization",))
        if node.inputs[1] in {v for v, _ in places.axes} and any(places.root(p) in units for p in places.axes.get((node.inputs[1], 0), ()))
    ]

    def of(value: ir.Value, axis: int) -> np.ndarray | None:
        array = constant_array(value)
        return None if array is None else np.abs(array.astype(np.float64))

    if not scales:
        raise Refuse("no BatchNormalization stands on its channels")
    return _by_unit(group, places, scales, of)


def taylor(group: Group, places: Places) -> np.ndarray:
    """The importance of each unit: what the outputs feel of its loss to second order, from gradients noted on the weights.

    The root mean square over the probes of w . J'r, the weights of a unit taken together (see
    `graphopt.recovery.tuning.salience`). Raises Refuse where no gradients are noted: `graphopt compress` notes them.
    """
    noted = [(value, axis) for value, axis in group.makers if axis in value.meta.get(SALIENCE, {})]
    if not noted:
        raise Refuse("no gradients are noted on its weights, as graphopt compress does")
    probes = len(noted[0][0].meta[SALIENCE][noted[0][1]])
    felt = [_by_unit(group, places, noted, lambda v, axis, k=k: v.meta[SALIENCE][axis][k]) for k in range(probes)]
    return np.sqrt(np.mean(np.square(felt), axis=0))


def _by_unit(
    group: Group, places: Places, weights: Iterable[tuple[ir.Value, int]], of: Callable[[ir.Value, int], np.ndarray | None]
) -> np.ndarray:  # fmt: skip
    """What `of` gives for each channel of some weights, summed by unit."""
    number = {root: i for i, root in enumerate(group.units)}
    total = np.zeros(len(group.units))
    for value, axis in weights:
        found = of(value, axis)
        if found is None:
            continue
        for channel, place in enumerate(places.axes[value, axis]):
            unit = number.get(places.root(place))
            if unit is not None:
                total[unit] += found[channel]
    return total
