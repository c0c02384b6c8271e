"""What each operator ties: which places of its inputs, weights and outputs are cut together, and which may not be."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from graphopt.rewriting import Context, attribute_graphs, constant_array, constant_tensor, guards, same_domain

from .channels import Places

Rule = Callable[[ir.Node, Places], None]

# Each output element comes of the input element at its place.
UNARY = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
    "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Cos", "Softplus", "Softsign", "Sqrt",
    "Swish", "Tanh", "ThresholdedRelu", "Dropout",
)  # fmt: skip
BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "PRelu", "Where", "Equal", "Greater", "Less", "And", "Or")
POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd")
REGROUPED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def tie_all(context: Context) -> tuple[Places, set[tuple[ir.Value, int]]]:
    """The places of a model's main graph, tied; and the axes of weights that make channels: (weight, axis)."""
    places, made = Places(context), set()
    graph = context.model.graph
    places.fix_all([v for v in graph.initializers.values() if v.is_graph_input()], "a caller may override it")
    places.fix_all(graph.inputs, "it is an input of the model")
    for node in graph:
        rule = _RULES.get(node.op_type) if same_domain(node.domain, "") else None
        captured = [v for a in node.attributes.values() for g in attribute_graphs(a) for v in _captured(g)]
        places.fix_all(captured, f"a subgraph of {node.op_type} reads it")
        if rule is None:
            places.fix_all([*node.inputs, *node.outputs], f"pruning does not know {node.op_type}")
            continue
        places.fix_all(node.outputs[1:], f"it is a further output of {node.op_type}") if node.op_type != "Split" else None
        rule(node, places)
        if (weight := _makes(node)) is not None:
            made.add(weight)
    places.fix_all(graph.outputs, "it is an output of the model")
    return places, made


def _captured(graph: ir.Graph) -> list[ir.Value]:
    found, todo = [], [graph]
    inside = set()
    while todo:
        graph = todo.pop()
        inside.add(graph)
        for node in graph:
            found += [v for v in node.inputs if v is not None]
            todo += [g for a in node.attributes.values() for g in attribute_graphs(a)]
    return [v for v in found if v.graph not in inside]


def _makes(node: ir.Node) -> tuple[ir.Value, int] | None:
    """The weight of an operator and the axis of it whose places are output channels."""
    if node.op_type == "Conv" and not is_depthwise(node):
        return node.inputs[1], 0  # type: ignore[return-value]
    if node.op_type == "ConvTranspose":
        return node.inputs[1], 1  # type: ignore[return-value]
    if node.op_type == "Gemm":
        return node.inputs[1], 0 if node.attributes.get_int("transB", 0) else 1  # type: ignore[return-value]
    if node.op_type == "MatMul" and constant_tensor(node.inputs[1]) is not None:
        return node.inputs[1], len(constant_tensor(node.inputs[1]).shape) - 1  # type: ignore[return-value, union-attr]
    return None


def is_depthwise(node: ir.Node) -> bool:
    """Whether each group of a Conv has one input channel."""
    weight = constant_tensor(node.inputs[1])
    return weight is not None and node.attributes.get_int("group", 1) > 1 and len(weight.shape) > 1 and weight.shape[1] == 1


# --- rules ------------------------------------------------------------------------------------------------------


def _unary(node: ir.Node, places: Places) -> None:
    places.alike(node.inputs[0], node.outputs[0], f"{node.op_type} of an unknown shape")  # type: ignore[arg-type]


def _broadcast(node: ir.Node, places: Places) -> None:
    places.broadcast([v for v in node.inputs if v is not None], node.outputs[0], f"{node.op_type} of unlike shapes")


def _conv(node: ir.Node, places: Places) -> None:
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    b = node.inputs[2] if len(node.inputs) > 2 else None
    why = f"{node.op_type} of an unknown shape"
    group = node.attributes.get_int("group", 1)
    transposed = node.op_type == "ConvTranspose"
    made, read = (1, 0) if transposed else (0, 1)
    if constant_tensor(w) is None:
        places.fix_all([x, w, y], "its weight is not constant")
        return
    places.tie_axes(x, 0, y, 0, why)
    if group == 1:
        places.tie_axes(w, made, y, 1, why)
        places.tie_axes(w, read, x, 1, why)
    elif not transposed and is_depthwise(node):
        outputs, inputs = places.of(w, 0), places.of(x, 1)
        places.tie_axes(w, 0, y, 1, why)
        if outputs is None or inputs is None or len(inputs) != group:
            places.fix_all([x, w, y], why)
            return
        each = len(outputs) // group
        for i, place in enumerate(inputs):
            places.tie([place] * each, outputs[i * each : (i + 1) * each])
    else:
        for value, axis in ((x, 1), (w, 0), (w, 1), (y, 1)):
            places.fix(value, axis, "a convolution in groups reads or makes it")
    if b is not None:
        places.tie_axes(b, 0, y, 1, why)


def _gemm(node: ir.Node, places: Places) -> None:
    a, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    turned_a, turned = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    why = "Gemm of an unknown shape"
    places.tie_axes(a, 1 if turned_a else 0, y, 0, why)
    places.tie_axes(a, 0 if turned_a else 1, w, 1 if turned else 0, why)
    places.tie_axes(w, 0 if turned else 1, y, 1, why)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        places.broadcast([node.inputs[2]], y, why)


def _matmul(node: ir.Node, places: Places) -> None:
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    why = "MatMul of an unknown shape"
    dims = [places.dims(v) for v in (a, b, y)]
    if any(d is None for d in dims) or min(len(dims[0]), len(dims[1])) < 2:  # type: ignore[arg-type]
        places.fix_all([a, b, y], why)
        return
    places.tie_axes(a, -1, b, -2, why)
    places.tie_axes(a, -2, y, -2, why)
    places.tie_axes(b, -1, y, -1, why)
    for value, own in ((a, dims[0]), (b, dims[1])):
        for back in range(3, len(own) + 1):  # type: ignore[arg-type]
            if own[-back] != 1 or dims[2][-back] == 1:  # type: ignore[index]
                places.tie_axes(value, -back, y, -back, why)


def _normalization(node: ir.Node, places: Places) -> None:
    x, y = node.inputs[0], node.outputs[0]
    places.alike(x, y, f"{node.op_type} of an unknown shape")
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        # The mean over what is left is another mean; that is part of what pruning changes.
        places.broadcast([v for v in node.inputs[1:] if v is not None], y, f"{node.op_type} of an unknown shape")
        return
    for value in node.inputs[1:]:
        if value is not None:
            places.tie_axes(value, 0, y, 1, f"{node.op_type} of an unknown shape")


def _pool(node: ir.Node, places: Places) -> None:
    for axis in (0, 1):
        places.tie_axes(node.inputs[0], axis, node.outputs[0], axis, f"{node.op_type} of an unknown shape")


def _reduce(node: ir.Node, places: Places) -> None:
    x, y = node.inputs[0], node.outputs[0]
    why = f"{node.op_type} of an unknown shape"
    dims, out = places.dims(x), places.dims(y)
    given = node.attributes.get("axes")
    axes = tuple(given.as_ints()) if given is not None and not given.is_ref() else None
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant_array(node.inputs[1])
        axes = None if array is None else tuple(int(v) for v in array.reshape(-1))
    if dims is None or out is None or not axes:
        places.fix_all([x, y], why)
        return
    gone = {a % len(dims) for a in axes}
    kept = len(out) == len(dims)
    target = 0
    for axis in range(len(dims)):
        if axis in gone:
            places.fix(x, axis, f"{node.op_type} goes over it")
            target += kept
            continue
        places.tie_axes(x, axis, y, target, why)
        target += 1


def _regroup(node: ir.Node, places: Places) -> None:
    x, y = node.inputs[0], node.outputs[0]
    if node.op_type == "Reshape" and constant_array(node.inputs[1]) is None:
        places.fix_all([x, y], "a Reshape to a shape that is computed")
        return
    places.regrouped(x, y, f"{node.op_type} takes its axes apart")


def _transpose(node: ir.Node, places: Places) -> None:
    x, y = node.inputs[0], node.outputs[0]
    dims = places.dims(x)
    if dims is None:
        places.fix_all([x, y], "Transpose of an unknown shape")
        return
    for to, source in enumerate(guards.attribute(node, "perm", tuple(range(len(dims)))[::-1])):
        places.tie_axes(x, source, y, to, "Transpose of an unknown shape")


def _concat(node: ir.Node, places: Places) -> None:
    y, inputs = node.outputs[0], [v for v in node.inputs if v is not None]
    dims = places.dims(y)
    if dims is None:
        places.fix_all([*inputs, y], "Concat of an unknown shape")
        return
    axis = node.attributes.get_int("axis", 0) % len(dims)
    _parts(places, y, inputs, axis, "Concat")


def _split(node: ir.Node, places: Places) -> None:
    x = node.inputs[0]
    dims = places.dims(x)
    if dims is None or (len(node.inputs) > 1 and node.inputs[1] is not None and constant_array(node.inputs[1]) is None):
        places.fix_all([x, *node.outputs], "Split into sizes that are computed")
        return
    _parts(places, x, list(node.outputs), node.attributes.get_int("axis", 0) % len(dims), "Split")


def _parts(places: Places, whole: ir.Value, parts: list[ir.Value], axis: int, name: str) -> None:
    all_of = places.of(whole, axis)
    ranges = [places.of(p, axis) for p in parts]
    if all_of is None or any(r is None for r in ranges) or sum(len(r) for r in ranges) != len(all_of):  # type: ignore[arg-type]
        places.fix_all([whole, *parts], f"{name} of an unknown shape")
        return
    start = 0
    for part, own in zip(parts, ranges, strict=True):
        places.tie(own, all_of[start : start + len(own)])  # type: ignore[arg-type]
        start += len(own)  # type: ignore[arg-type]
        places.alike(part, whole, f"{name} of an unknown shape", but=(axis,))


def _softmax(node: ir.Node, places: Places) -> None:
    x, y = node.inputs[0], node.outputs[0]
    places.alike(x, y, f"{node.op_type} of an unknown shape")
    dims = places.dims(x)
    axis = node.attributes.get_int("axis", -1)
    old = places.context.opset(node) < 13
    for place in range(axis % len(dims) if old and dims else 0, len(dims or ())) if old else (axis,):
        places.fix(x, place, f"{node.op_type} goes over it")


def _gather(node: ir.Node, places: Places) -> None:
    table, ids, y = node.inputs[0], node.inputs[1], node.outputs[0]
    dims, rank = places.dims(table), len(places.dims(ids) or ())
    if dims is None or places.dims(ids) is None or node.attributes.get_int("axis", 0) != 0:
        places.fix_all([table, y], "Gather takes some of it")
        return
    places.fix(table, 0, "Gather takes some of it")
    for axis in range(1, len(dims)):
        places.tie_axes(table, axis, y, rank + axis - 1, "Gather of an unknown shape")


def _resize(node: ir.Node, places: Places) -> None:
    x, y = node.inputs[0], node.outputs[0]
    scales = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    dims = places.dims(x)
    if dims is None or scales is None or len(scales) != len(dims) or not math.isclose(scales[1], 1):
        places.fix_all([x, y], "Resize to a shape that names it")
        return
    for axis in (0, 1):
        places.tie_axes(x, axis, y, axis, "Resize of an unknown shape")


def _pad(node: ir.Node, places: Places) -> None:
    x, y = node.inputs[0], node.outputs[0]
    pads = guards.attribute(node, "pads") if len(node.inputs) < 2 else constant_array(node.inputs[1])
    dims = places.dims(x)
    if dims is None or pads is None or len(pads) != 2 * len(dims) or (len(node.inputs) > 3 and node.inputs[3] is not None):
        places.fix_all([x, y], "Pad of an unknown extent")
        return
    for axis in range(len(dims)):
        if pads[axis] or pads[axis + len(dims)]:
            places.fix(x, axis, "Pad goes along it")
            places.fix(y, axis, "Pad goes along it")
        else:
            places.tie_axes(x, axis, y, axis, "Pad of an unknown shape")


_RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BROADCAST, _broadcast),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(REGROUPED, _regroup),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"), _normalization),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Gather": _gather,
    "Resize": _resize,
    "Pad": _pad,
}
