"""Which operators can run on integers, and which values between them stay integers.

An anchor (Conv, Gemm, MatMul with constant weights) is worth an integer kernel by itself. What stands between anchors
joins them where ONNX Runtime has a kernel for it: on its own it would gain nothing, but a float operator between two
integer ones costs a conversion on either side.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Refuse, constant_tensor, guards, is_sparse, same_domain, scalar_of, use_count

from .forms import Form, find_form

ANCHORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

#: Operators whose integer kernels read and write values on grids of their own.
_COMPUTED = frozenset({"Add", "Mul", "Concat", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Clip"})
#: Those of which an input may be constant: it gets a grid of its own.
_WITH_CONSTANTS = frozenset({"Add", "Mul", "Concat"})
#: Operators that only move or choose numbers: the result is on the grid of the first input.
_MOVED = frozenset({
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand", "Tile", "Resize",
    "DepthToSpace", "SpaceToDepth", "ReduceMax", "ReduceMin",
})  # fmt: skip
_CONSTANT_BYTES = 1 << 20  # of a constant that is an activation
_FACTOR_ERROR = 0.02  # relative, root mean square, that rounding may put into constant factors


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
        form: how it is written where that is not as the node itself between conversions.
        constants: inputs that are constant activations, by place.
    """

    node: ir.Node
    tail: ir.Node | None
    inputs: tuple[int, ...]
    anchor: bool
    rounded: bool = True
    fault: str | None = None
    form: Form | None = None
    constants: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def output(self) -> ir.Value:
        return (self.tail or self.node).outputs[0]

    @property
    def outputs(self) -> list[ir.Value]:
        """All of its results: a Split has several."""
        return [self.output] if self.tail is not None or self.node.op_type != "Split" else list(self.node.outputs)

    @property
    def moves(self) -> bool:
        """Whether its result is on the grid of its first activation."""
        return self.form.moves if self.form is not None else self.node.op_type in _MOVED

    @property
    def convolves(self) -> bool:
        """Whether it becomes a convolution."""
        return self.node.op_type == "Conv" if self.form is None else self.form.convolves

    @property
    def calibrated(self) -> list[ir.Value]:
        """The values whose ranges it takes samples to know."""
        settled = not self.rounded or self.moves or (self.form is not None and self.form.settles)
        return self.activations + ([] if settled else [self.output])

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
        else:
            joining = _joining(context, node)
            if joining is None or any(v not in rounded for v in joining.activations):
                continue
            unit = joining
        found[node] = unit
        rounded.update(unit.outputs)
    _drop_needless(found)
    return list(found.values())


def _drop_needless(found: dict[ir.Node, Unit]) -> None:
    """Leave out what joined without a consumer that runs on integers; let results of products in float where so."""
    read: set[ir.Value] = set()
    convolved: set[ir.Value] = set()  # what a convolution reads, directly or behind others that join
    for node, unit in reversed(list(found.items())):
        convolves = unit.convolves or any(v in convolved for v in unit.outputs)
        needless = not any(v in read for v in unit.outputs)
        # The runtime has a fast pool of integers only with channels last, which it takes to where convolutions follow:
        # 19 ns an element elsewhere, beside 0.8.
        if not unit.anchor and (needless or (node.op_type == "MaxPool" and not convolves)):
            del found[node]
            continue
        # A Conv has no integer kernel with a float result; products have.
        unit.rounded = not unit.anchor or node.op_type == "Conv" or not needless
        if not unit.rounded:
            unit.tail = None
        read.update(unit.activations)
        if convolves and (unit.convolves or not unit.anchor):
            convolved.update(unit.activations)


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


def _joining(context: Context, node: ir.Node) -> Unit | None:
    """The unit of a node between anchors, where the runtime has an integer kernel for it or for what it can be written as."""
    if context.dtype(node.outputs[0]) != ir.DataType.FLOAT or node.outputs[0].name == "":
        return None
    if node.op_type != "Split" and any(use_count(v) or v.is_graph_output() for v in node.outputs[1:]):
        return None
    form = find_form(context, node)
    if form is not None:
        return Unit(node, None if form.moves or form.settles else _tail(node), form.inputs, False, form=form)
    if node.op_type in _MOVED:
        return Unit(node, None, (0,), False) if _can_move(context, node) else None
    if node.op_type not in _COMPUTED:
        return None
    constants = _constants(node) if node.op_type in _WITH_CONSTANTS else {}
    places = (0,) if node.op_type == "Clip" else tuple(i for i in range(len(node.inputs)) if i not in constants)
    return Unit(node, _tail(node), places, False, constants=constants) if places else None


def _constants(node: ir.Node) -> dict[int, np.ndarray]:
    """The small constant inputs that a grid can stand for: finite, not zero everywhere, and for factors none lost to its steps."""
    found = {}
    for place, value in enumerate(node.inputs):
        tensor = constant_tensor(value)
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and 0 < tensor.nbytes <= _CONSTANT_BYTES:
            data = tensor.numpy()
            if np.isfinite(data).all() and data.any() and (node.op_type != "Mul" or _even(data)):
                found[place] = data
    return found


def _even(data: np.ndarray) -> bool:
    """Whether factors stay what they are on one grid: factors of channels can be so far apart that the small ones become zero."""
    size = np.abs(data[data != 0].astype(np.float64))
    step = (max(float(data.max()), 0.0) - min(float(data.min()), 0.0)) / 255
    return bool(np.sqrt(np.mean((step / size) ** 2 / 12)) <= _FACTOR_ERROR)


def _can_move(context: Context, node: ir.Node) -> bool:
    """Whether the kernel of an operator that moves numbers takes integers, with these attributes and at this opset."""
    opset = context.opset(node, "")
    if node.op_type == "MaxPool":
        # 12 is the first with integers
        return opset >= 12 and all(d == 1 for d in guards.attribute(node, "dilations", ()))
    if node.op_type == "Resize":
        mode = guards.attribute(node, "coordinate_transformation_mode", "half_pixel")
        return opset >= 11 and guards.attribute(node, "mode", "nearest") == "nearest" and mode != "tf_crop_and_resize"
    if node.op_type == "Split":
        return all(v.name for v in node.outputs)
    if node.op_type in ("ReduceMax", "ReduceMin"):
        return opset >= 12
    return node.op_type not in ("Slice", "Gather", "Expand", "Tile") or opset >= 10


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
