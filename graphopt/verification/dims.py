"""Sizes: which dimensions of a model's inputs are free, which of them go together, and what sizes are plausible.

A *group* is a set of free dimensions that take one size. Dimensions of one name are one group, as ONNX means it, with
two exceptions that real files need: a name that stands twice in the shape of one input (PaddlePaddle's exporter writes
``p2o.DynamicDimension`` for batch, height and width alike) and a placeholder (``?``, ``None``, ``unk__12``, nothing)
say only "unknown", so those are groups of their own. Where several inputs have unknown batches or lengths, they are
first tried as one, because that is what nearly all models want, and as independent ones when the model turns it down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.errors import OptionError
from graphopt.verification.constants import constant_tensor
from graphopt.verification.samples import fed_inputs

_PLACEHOLDER = re.compile(r"^(|\?|-1|none|null|unk(nown)?(_+\d+)?|dynamic|any|\*|_+)$", re.I)

# Sizes to try by role, the most plausible first. Batches small; pictures in multiples of 32, which five stridings by
# two divide; sounds from one analysis frame to two seconds. Neighbours differ in parity and in divisibility.
_SIZES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 3, 4, 8),
    "height": (64, 96, 48, 128, 32, 160, 224, 256, 320, 512, 640),
    "width": (96, 64, 160, 128, 48, 320, 32, 224, 256, 512, 640),
    "depth": (16, 32, 8, 64),
    "sequence": (16, 11, 24, 32, 8, 64, 128, 5, 256, 1),
    "audio": (4096, 6144, 512, 16000, 576, 1024, 400, 32000, 256, 288, 1600, 48000, 8000),
    "past": (4, 7, 8, 1, 16, 0),
    "channels": (3, 1, 4, 16, 32, 64),
    "count": (7, 12, 16, 4, 8, 32, 1),
}

# What such models are used at, the largest first: a sentence or two, the picture of most classifiers, a second of sound.
USUAL: dict[str, tuple[int, ...]] = {
    "height": (224, 128), "width": (224, 128), "sequence": (128, 64), "audio": (16000, 8000), "past": (128, 64),
}  # fmt: skip


@dataclass(frozen=True)
class InputSpec:
    """One input to be fed. dims: an int is fixed, a str is the key of a slot, an ``ir.SymbolicDim`` is an expression
    over named dimensions; roles: one word an axis ("fixed" where it is); kind: tensor, sequence or optional."""

    name: str
    dtype: ir.DataType
    dims: tuple[int | str | ir.SymbolicDim, ...]
    roles: tuple[str, ...]
    kind: str = "tensor"


@dataclass
class Group:
    """Slots that take one size. sizes: candidates, the most plausible first; pinned: the size that was asked for."""

    key: str
    role: str
    slots: list[str]
    sizes: list[int]
    pinned: int | None = None


@dataclass
class Layout:
    """All inputs of a model and their free dimensions."""

    inputs: list[InputSpec]
    roles: dict[str, str] = field(default_factory=dict)  # slot -> role
    known: dict[str, int] = field(default_factory=dict)  # slot -> the only size that a consumer takes
    pinned: dict[str, int] = field(default_factory=dict)  # slot -> the size that was asked for
    named: set[str] = field(default_factory=set)  # slots that a real name stands for
    learnt: list[int] = field(default_factory=list)  # numbers that the graph itself speaks of

    def groups(self, tied: bool) -> list[Group]:
        """The free groups; tied: unnamed batches are one group, and so are unnamed sequence lengths."""
        found: dict[str, Group] = {}
        for slot, role in self.roles.items():
            key = slot
            if tied and role in ("batch", "sequence", "past"):
                key = f"*{role}"  # named ones too: 'batch' beside 'None' is nearly always the same batch
                if role != "batch" and slot in self.named:
                    key = slot
            group = found.setdefault(key, Group(key, role, [], []))
            group.slots.append(slot)
            if slot in self.pinned:
                group.pinned = self.pinned[slot]
            if slot in self.known and not group.sizes:
                group.sizes = [self.known[slot]]
        for group in found.values():
            sizes = [*group.sizes, *_SIZES[group.role]]
            if group.role not in ("batch", "past"):
                sizes += self.learnt
            group.sizes = [group.pinned] if group.pinned is not None else list(dict.fromkeys(sizes))
            if group.key.startswith("*"):
                group.key = group.slots[0]
        return list(found.values())

    def shape(self, spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of an input under sizes of all slots. Raises ValueError where an expression gives no size."""
        shape = []
        for dim in spec.dims:
            if isinstance(dim, ir.SymbolicDim):
                value = dim.evaluate(dict(sizes))
                if not isinstance(value, int) or value < 0:
                    raise ValueError(f"input '{spec.name}': dimension {dim.value} has no size under {dict(sizes)}")
                shape.append(value)
            else:
                shape.append(sizes[dim] if isinstance(dim, str) else dim)
        return tuple(shape)


def layout(model: ir.Model, shapes: Mapping[str, Sequence[int]] | None = None) -> Layout:
    """The free dimensions of a model's inputs.

    shapes: input -> the shape asked for; a size below 0 leaves a dimension free. Raises OptionError where that names
    no input, has another rank, or contradicts a fixed dimension.
    """
    result = Layout([])
    values = fed_inputs(model)
    _check_shapes(values, shapes or {})
    plain: set[str] = set()  # names that stand alone as a dimension somewhere: what expressions are made of
    for value in values:
        names = _names(value)
        plain |= {n for n in names if n and names.count(n) == 1 and not _PLACEHOLDER.match(n)}
    for value in values:
        result.inputs.append(_spec(value, result, plain, (shapes or {}).get(value.name)))
    result.learnt = _numbers(model)
    return result


def _names(value: ir.Value) -> list[str | None]:
    return [d.value if isinstance(d, ir.SymbolicDim) else None for d in value.shape or ()]


def _spec(value: ir.Value, result: Layout, plain: set[str], asked: Sequence[int] | None) -> InputSpec:
    kind, type_ = "tensor", value.type
    if isinstance(type_, ir.OptionalType):
        kind, type_ = "optional", type_.elem_type
    if isinstance(type_, ir.SequenceType):
        kind, type_ = "sequence", type_.elem_type
    dtype = type_.dtype if isinstance(type_, ir.TensorType) else ir.DataType.UNDEFINED
    if isinstance(type_, ir.SparseTensorType):
        kind = "sparse"
    shape = list(value.shape) if value.shape is not None else [None] * (len(asked) if asked else guess_rank(value))
    names = _names(value) if value.shape is not None else [None] * len(shape)
    dims: list[int | str | ir.SymbolicDim] = []
    roles: list[str] = []
    for axis, declared in enumerate(shape):
        if isinstance(declared, int) and declared >= 0:
            dims.append(declared)
            roles.append("fixed")
            continue
        name = names[axis] or ""
        if name in plain and names.count(name) == 1:
            slot = name
            result.named.add(slot)
        else:
            expression = _expression(declared, plain)
            if expression is not None:
                dims.append(expression)
                roles.append("expression")
                continue
            slot = f"{value.name}[{axis}]"
        role = result.roles.get(slot) or _role(value, shape, axis, name, dtype)
        result.roles[slot] = role
        if (known := _known_size(value, axis)) is not None:
            result.known.setdefault(slot, known)
        if asked is not None and asked[axis] >= 0:
            result.pinned[slot] = int(asked[axis])
        dims.append(slot)
        roles.append(role)
    return InputSpec(value.name, dtype, tuple(dims), tuple(roles), kind)


def _expression(dim, plain: set[str]) -> ir.SymbolicDim | None:
    """A dimension that is worked out from named ones, such as ``past_length + length``; None for anything else."""
    if not isinstance(dim, ir.SymbolicDim) or not dim.value or not re.search(r"[+\-*/(]", dim.value):
        return None
    try:
        symbols = dim.free_symbols()
    except ValueError:  # not an expression at all, a name with odd characters
        return None
    return dim if symbols and symbols <= plain else None


def _role(value: ir.Value, shape: list, axis: int, name: str, dtype: ir.DataType) -> str:
    """What a dimension most likely is: by its name, then by the consumer, then by rank, dtype and neighbours."""
    lowered = name.lower()
    for words, role in (
        (("past", "cache", "memory_len"), "past"),
        (("batch",), "batch"),
        (("height",), "height"),
        (("width",), "width"),
        (("sample", "audio", "wave"), "audio"),
        (("seq", "token", "length", "time", "frame", "step"), "sequence"),
        (("channel", "feature"), "channels"),
    ):
        if any(w in lowered for w in words):
            if role == "sequence" and dtype.is_floating_point() and _sound(value, shape, axis):
                return "audio"
            return role
    rank = len(shape)
    consumers = {node.op_type for node, index in value.uses() if index == 0}
    fixed = [d if isinstance(d, int) and d >= 0 else None for d in shape]
    if consumers & {"LSTM", "GRU", "RNN"} and rank == 3:
        return ("sequence", "batch", "channels")[axis]
    if re.search(r"past|cache", value.name or "", re.I) and axis > 0:
        return "past"
    if rank >= 4 and dtype != ir.DataType.STRING:
        channels_last = fixed[-1] in (1, 3, 4) and fixed[1] not in (1, 3, 4)
        spatial = list(range(1, rank - 1)) if channels_last else list(range(2, rank))
        if axis in spatial:
            place = spatial[::-1].index(axis)
            return ("width", "height", "depth")[min(place, 2)]
        return "batch" if axis == 0 else "channels"
    if rank >= 2 and axis == 0:
        return "batch"
    if rank == 3 and axis == 1 and fixed[2] is not None and fixed[0] is not None and fixed[0] <= 12:
        return "batch"  # [layers, batch, hidden]: the state of a recurrent network
    if dtype.is_floating_point() and _sound(value, shape, axis):
        return "audio"
    if rank == 3 and axis == 2:
        return "channels"
    return "sequence" if rank >= 2 else "count"


def _sound(value: ir.Value, shape: list, axis: int) -> bool:
    """Whether a float dimension looks like the length of a sound: the last one of [n], [batch, n] or [batch, 1, n]."""
    rank = len(shape)
    if axis != rank - 1 or rank > 3 or (rank == 3 and shape[1] not in (1, 2)):
        return False
    # A row of features is multiplied as it is; a sound is cut, padded, framed or convolved first.
    return not {n.op_type for n, _ in value.uses()} & {"Gemm", "MatMul", "Scaler", "LayerNormalization"}


def _known_size(value: ir.Value, axis: int) -> int | None:
    """The size that a consumer's weights dictate, e.g. channels of a Conv or features of a Gemm; None where none does."""
    rank = len(value.shape) if value.shape is not None else guess_rank(value)
    for node, index in value.uses():
        if index != 0 or len(node.inputs) < 2 or node.inputs[1] is None or node.inputs[1].shape is None:
            continue
        weight = node.inputs[1].shape
        if not all(isinstance(d, int) for d in weight):
            continue
        attrs = node.attributes
        if node.op_type == "Conv" and axis == 1:
            return weight[1] * (attrs["group"].as_int() if "group" in attrs else 1)
        if node.op_type == "ConvTranspose" and axis == 1:
            return weight[0]
        if node.op_type in ("BatchNormalization", "InstanceNormalization") and axis == 1:
            return weight[0]
        if node.op_type == "MatMul" and axis == rank - 1 and len(weight) >= 2:
            return weight[-2]
        if node.op_type == "Gemm" and axis == 1 and not ("transA" in attrs and attrs["transA"].as_int()):
            return weight[1] if "transB" in attrs and attrs["transB"].as_int() else weight[0]
        if node.op_type in ("LSTM", "GRU", "RNN") and axis == 2:
            return weight[2]
    return None


def guess_rank(value: ir.Value) -> int:
    """A rank for an input that declares none, from the nodes that take it; 2 where they do not tell."""
    for node, index in value.uses():
        if index != 0:
            continue
        if node.op_type in ("Conv", "ConvTranspose") and node.inputs[1] is not None and node.inputs[1].shape is not None:
            return len(node.inputs[1].shape)
        if node.op_type == "Transpose" and "perm" in node.attributes:
            return len(node.attributes["perm"].as_ints())
        if node.op_type in ("LSTM", "GRU", "RNN"):
            return 3
        if node.op_type in ("GlobalAveragePool", "MaxPool", "AveragePool", "Resize", "DepthToSpace", "SpaceToDepth"):
            return 4
        if node.op_type == "BatchNormalization":
            return 4
    return 2


def _numbers(model: ir.Model, limit: int = 12) -> list[int]:
    """Numbers of 2 to 65536 in the constants that shape tensors (Reshape, Slice, Expand, Pad, Split), smallest first:
    a model that only takes frames of 576 or rows of 120 says so there."""
    found: set[int] = set()
    for count, node in enumerate(model.graph.all_nodes()):
        if count > 20_000:  # a huge graph: its first nodes are enough
            break
        if node.op_type not in ("Reshape", "Slice", "Expand", "Pad", "Split"):
            continue
        for value in node.inputs[1:]:
            tensor = constant_tensor(value)
            if tensor is not None and tensor.size <= 16 and tensor.dtype.is_integer():
                positive = [int(n) for n in tensor.numpy().ravel() if int(n) > 0]
                if node.op_type == "Reshape":
                    positive.append(math.prod(positive))  # what a flat input must hold, or a multiple of it
                found |= {n for n in positive if 2 <= n <= 65536}
    return sorted(found)[:limit]


def _check_shapes(values: list[ir.Value], shapes: Mapping[str, Sequence[int]]) -> None:
    known = {v.name: v for v in values}
    for name, shape in shapes.items():
        if name not in known:
            raise OptionError(f"shape: the model has no input '{name}' (its inputs: {', '.join(known) or 'none'})")
        declared = known[name].shape
        if declared is None:
            continue
        if len(declared) != len(shape):
            raise OptionError(f"shape: input '{name}' has {len(declared)} dimensions, {list(shape)} has {len(shape)}")
        for axis, (d, s) in enumerate(zip(declared, shape, strict=True)):
            if isinstance(d, int) and d >= 0 and s >= 0 and d != s:
                raise OptionError(f"shape: dimension {axis} of input '{name}' is fixed to {d}, not {s}")
