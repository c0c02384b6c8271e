"""Which operators can run on integers, and which values between them stay integers.

An anchor (Conv, Gemm, MatMul with constant weights) is worth an integer kernel by itself. What stands between anchors
joins them where ONNX Runtime has a kernel for it: on its own it would gain nothing, but a float operator between two
integer ones costs a conversion on either side.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.rewriting import Context, Refuse, constant_tensor, guards, is_sparse, same_domain, scalar_of, use_count

ANCHORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

#: Operators whose integer kernels read and write values on grids of their own.
_COMPUTED = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"})
#: Operators that only move or choose numbers: the result is on the grid of the first input.
MOVED = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
#: Inputs that are no activations, from this place on.
_FROM = {"Reshape": 1, "Squeeze": 1, "Unsqueeze": 1}


@dataclass(eq=False)
class Unit:
    """A node that may run on integers.

    Attributes:
        node: the node.
        tail: a Relu or Clip behind it, which rounding to a grid that begins at zero makes needless.
        inputs: places of the inputs that are activations.
        anchor: whether it is worth it by itself.
        rounded: whether its result is rounded to a grid, rather than left in float.
        fault: why it stays in float after all.
    """

    node: ir.Node
    tail: ir.Node | None
    inputs: tuple[int, ...]
    anchor: bool
    rounded: bool = True
    fault: str | None = None

    @property
    def output(self) -> ir.Value:
        return (self.tail or self.node).outputs[0]

    @property
    def activations(self) -> list[ir.Value]:
        return [self.node.inputs[i] for i in self.inputs]  # type: ignore[misc]


def find_units(context: Context, per_channel: bool) -> list[Unit]:
    """The units of the main graph in order: anchors, and what joins them. Refusals of anchors go to the log."""
    found: dict[ir.Node, Unit] = {}
    rounded: set[ir.Value] = set()  # values that are on a grid, or could be at no cost
    for node in context.model.graph:
        if not same_domain(node.domain, ""):
            continue
        if node.op_type in ANCHORS:
            if not _has_weight(node):
                continue
            try:
                guard_anchor(context, node, per_channel)
            except Refuse as refusal:
                context.log.refuse(node, refusal.reason)
                continue
            unit = Unit(node, _tail(node), (0,), True)
        elif node.op_type in _COMPUTED or node.op_type in MOVED:
            places = tuple(range(min(len(node.inputs), _FROM.get(node.op_type, len(node.inputs)))))
            if not _can_join(context, node) or any(node.inputs[i] not in rounded for i in places):
                continue
            unit = Unit(node, None if node.op_type in MOVED else _tail(node), places, False)
        else:
            continue
        found[node] = unit
        rounded.add(unit.output)
    _drop_needless(found)
    return list(found.values())


def _drop_needless(found: dict[ir.Node, Unit]) -> None:
    """Leave out what joined without a consumer that runs on integers; let results of products in float where so."""
    read: set[ir.Value] = set()
    for node, unit in reversed(list(found.items())):
        if not unit.anchor and unit.output not in read:
            del found[node]
            continue
        # A Conv has no integer kernel with a float result; products have.
        unit.rounded = unit.node.op_type == "Conv" or unit.output in read
        if not unit.rounded:
            unit.tail = None
        read.update(unit.activations)


def guard_anchor(context: Context, node: ir.Node, per_channel: bool) -> None:
    """Refuse what has no integer kernel, or none with these attributes, types or shapes."""
    opset = context.opset(node, "")
    guards.require(opset >= 10, f"opset {opset} has no QuantizeLinear (10 has)")
    guards.require(not per_channel or opset >= 13, f"opset {opset} has no scale per channel (13 has); see the option granularity")
    guards.require(node.op_type != "ConvTranspose", "ONNX Runtime has no integer kernel of ConvTranspose")
    guards.require(context.dtype(node.inputs[0]) == ir.DataType.FLOAT, "its input is not float32")
    weight = node.inputs[1]
    tensor = constant_tensor(weight)
    if tensor is None:
        raise Refuse(f"the weight {weight.name!r} is also a graph input, so a caller may override it")  # type: ignore[union-attr]
    guards.require(tensor.dtype == ir.DataType.FLOAT, f"the weight is {tensor.dtype.name}, not float32")
    guards.require(not is_sparse(tensor), "the weight is stored sparse")
    guards.require(not weight.is_graph_output(), "the weight is also a graph output")  # type: ignore[union-attr]
    guards.require(constant_tensor(node.inputs[0]) is None, "both inputs are constant")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "Gemm":
        guards.require(not guards.attribute(node, "transA", 0), "its first input is transposed")
        guards.require(guards.attribute(node, "alpha", 1.0) == 1.0, "its product is scaled by alpha")
        guards.require(bias is None or guards.attribute(node, "beta", 1.0) == 1.0, "its bias is scaled by beta")
    if node.op_type == "MatMul":
        guards.require(len(tensor.shape) == 2, f"its weight has {len(tensor.shape)} dimensions, not 2")
        guards.require((context.rank(node.inputs[0]) or 0) >= 2, "the rank of its input is unknown or below 2")
    if bias is not None:
        guards.float_constant(bias, "the bias")
        channels = tensor.shape[_outputs_axis(node)]
        guards.require(
            context.static_dims(bias) in ((channels,), (1, channels)), f"the bias {bias.name!r} has not one number for each channel"
        )
    guards.require(all(d > 0 for d in tensor.shape.numpy()), "the weight has no elements")
    for usage in weight.uses():  # type: ignore[union-attr]
        same = usage.node.op_type == node.op_type and usage.idx == 1 and usage.node.graph is node.graph
        same = same and guards.attribute(usage.node, "transB", 0) == guards.attribute(node, "transB", 0)
        guards.require(same, f"the weight {weight.name!r} is also consumed by {usage.node.op_type} in another way")  # type: ignore[union-attr]


def _outputs_axis(node: ir.Node) -> int:
    return 0 if node.op_type == "Conv" or guards.attribute(node, "transB", 0) else 1


def _has_weight(node: ir.Node) -> bool:
    """Whether the second input is a weight at all: anything else is no match, and no refusal."""
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return False
    value = node.inputs[1]
    tensor = value.const_value if value.is_initializer() else constant_tensor(value)
    return tensor is not None and tensor.dtype in guards.FLOATS and len(tensor.shape) >= 2


def _can_join(context: Context, node: ir.Node) -> bool:
    """Whether the runtime has an integer kernel for a node between anchors."""
    if len(node.outputs) > 1 and any(use_count(v) or v.is_graph_output() for v in node.outputs[1:]):
        return False
    if node.op_type in ("AveragePool", "MaxPool") and any(d != 1 for d in guards.attribute(node, "dilations", ())):
        return False
    if node.op_type == "MaxPool" and context.opset(node, "") < 12:
        return False  # 12 is the first with integers
    return context.dtype(node.outputs[0]) == ir.DataType.FLOAT and node.outputs[0].name != ""


def _tail(node: ir.Node) -> ir.Node | None:
    """The only consumer of a node's result where it cuts off what is negative and nothing within the grid."""
    value = node.outputs[0]
    if value.is_graph_output() or use_count(value) != 1:
        return None
    user = next(iter(value.uses())).node
    if user.graph is not node.graph or not same_domain(user.domain, ""):
        return None
    if user.op_type == "Relu":
        return user
    if user.op_type == "Clip" and len(user.inputs) >= 2 and user.inputs[0] is value and scalar_of(user.inputs[1]) == 0:
        return user
    return None
