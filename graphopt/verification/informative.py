"""Whether a sample proves anything: a comparison of outputs that never move is passed by every model.

An output is *informative* on a sample when it has finite values, is not constant, is not stuck at the ends of its
range, and is not the same as on another input of the same shape by more than rounding. A sample is informative when
one of its outputs is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.verification.constants import constant_tensor, graphs_in
from graphopt.verification.metrics import is_float, leaves, wide

# Below this part of the scale, a change may be rounding.
_LEVEL = 1e-5
_RANGES = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Erf": (-1.0, 1.0)}
_PASSING = frozenset(
    ["Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Flatten", "Cast", "Concat", "Split", "Pad", "Gather", "Resize"]
)


def ranges(model: ir.Model) -> dict[str, tuple[float, float]]:
    """Output -> the fixed range it is bound to by the operator that it ends in; outputs without one are left out."""
    found = {}
    for output in model.graph.outputs:
        if output.name and (bounds := _range(output)) is not None:
            found[output.name] = bounds
    return found


def live_values(model: ir.Model) -> Iterator[tuple[ir.Node, bool]]:
    """The nodes of the main graph in order, each with whether what it makes depends on the values of the inputs.

    Sizes are no values: what comes from a Shape alone is the same for all inputs of one size.
    """
    live: set[ir.Value] = {v for v in model.graph.inputs if v.name not in model.graph.initializers}
    for node in model.graph:
        reads = list(node.inputs)
        if node.op_type in ("Shape", "Size", "EyeLike") and node.domain == "":
            reads = []
        elif node.op_type == "CastLike":
            reads = reads[:1]  # the second one gives its type alone
        for graph in graphs_in(node):
            reads += [v for inner in graph.all_nodes() for v in inner.inputs] + list(graph.outputs)
        depends = any(v in live for v in reads)
        if depends:
            live.update(node.outputs)
        yield node, depends


def independent(model: ir.Model) -> set[str]:
    """The outputs that do not depend on the values of the inputs: constants, and what is made of sizes alone."""
    dependent: set[ir.Value] = {v for v in model.graph.inputs if v.name not in model.graph.initializers}
    for node, depends in live_values(model):
        if depends or node.op_type.startswith(("Random", "Bernoulli", "Multinomial")):
            dependent.update(node.outputs)
    return {v.name for v in model.graph.outputs if v.name and v not in dependent}


def _range(value: ir.Value | None) -> tuple[float, float] | None:
    for _ in range(32):
        node = value.producer() if value is not None else None
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in _RANGES:
            return _RANGES[node.op_type]
        if node.op_type == "Clip" and len(node.inputs) == 3:
            ends = [constant_tensor(v) for v in node.inputs[1:]]
            if all(e is not None and e.size == 1 for e in ends):
                low, high = (float(e.numpy().reshape(-1)[0]) for e in ends)
                return (low, high) if low < high else None
            return None
        if node.op_type == "If":
            both = {_range(attr.value.outputs[node.outputs.index(value)]) for attr in node.attributes.values()}
            return both.pop() if len(both) == 1 else None
        if node.op_type not in _PASSING:
            return None
        value = node.inputs[0]
    return None


def judge(
    outputs: Mapping[str, Any],
    others: list[Mapping[str, Any]],
    bounds: Mapping[str, tuple[float, float]],
    still: Set[str] = frozenset(),
) -> dict[str, str]:
    """Why each output proves nothing on this sample: output -> reason, "" for one that does.

    others: outputs of the reference on other inputs; those of another shape are passed over; still: outputs that do not
    depend on the values of the inputs (see `independent`): where all are such, any sample proves all there is to prove.
    """
    verdicts = {}
    nothing_else = set(outputs) <= still
    for name, value in outputs.items():
        if name in still:
            verdicts[name] = "" if nothing_else else "it does not depend on the inputs' values"
            continue
        theirs = [leaves(o[name]) for o in others if name in o]
        reasons = [
            _leaf(array, [t[i][1] for t in theirs if len(t) > i], bounds.get(name))
            for i, (path, array) in enumerate(leaves(value))
            if not path.endswith((":keys", ":length", ":none"))
        ]
        verdicts[name] = next((r for r in reasons if not r), "") if "" in reasons else (reasons or ["empty"])[0]
    return verdicts


def _leaf(array: np.ndarray, others: list[np.ndarray], bounds: tuple[float, float] | None) -> str:
    if not array.size:
        # Nothing found on this input. That some other input finds something shows that it could have.
        return "empty"
    alike = [o for o in others if o.shape == array.shape and o.dtype == array.dtype]
    if not is_float(array):
        if len(alike) < len(others):
            return ""  # the shape itself depends on the input
        if alike:
            return "" if any(np.any(o != array) for o in alike) else "the same on every input"
        return "" if array.size > 1 and np.any(array != array.flat[0]) else "constant"
    values = np.abs(wide(array)) if array.dtype.kind == "c" else wide(array)
    finite = np.isfinite(values)
    if not finite.any():
        return "no finite value"
    values = values[finite]
    low, high, scale = float(values.min()), float(values.max()), float(np.abs(values).max())
    if scale == 0.0:
        return "zero everywhere"
    if array.size > 1 and high - low <= _LEVEL * scale:
        return "constant"
    if bounds is not None:
        width = bounds[1] - bounds[0]
        if float(np.minimum(values - bounds[0], bounds[1] - values).max()) <= 1e-4 * width:
            return "saturated"
    if alike:
        with np.errstate(invalid="ignore"):
            change = max(float(np.nanmax(np.abs(wide(o) - wide(array)), initial=0.0)) for o in alike)
        if change <= _LEVEL * scale:
            return "the same on every input"
    return ""


def altered(feeds: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Other feeds of the same shapes that the model most likely takes as well: what is there, in another order, and
    floats a little smaller. Arrays of one element stay."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, value in feeds.items():
        if isinstance(value, np.ndarray) and value.size > 1:
            mixed = rng.permutation(value.ravel()).reshape(value.shape)
            whole = value.dtype.kind != "f" or np.array_equal(value, np.round(value))  # indices and masks stay what they are
            result[name] = mixed if whole else (mixed * 0.8).astype(value.dtype)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            result[name] = (value * 0.8).astype(value.dtype)
        else:
            result[name] = value
    return result
