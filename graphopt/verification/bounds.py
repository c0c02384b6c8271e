"""What a graph does with its inputs: which values of an input it takes, and which make it do its work.

An input is followed forwards through the nodes that only move, widen or shift it (Cast, Reshape, Concat, Add of a
constant, ...), into the bodies of If, Loop and Scan, and into local functions. Where it ends as an index, the size of
the axis that it indexes bounds it. What is followed is ``a * x + b``, so a table that is entered at ``2 * x + 1``
bounds x rightly. An input that is used as a mask, compared with a constant, used as a size, or looked up in a list of
keys says so in the same walk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.verification.constants import constant_array, constant_scalar, dim_of, graphs_in, is_float_value, shape_of

_MOVE = frozenset(
    [
        "Cast",
        "CastLike",
        "Identity",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Slice",
        "Concat",
        "Expand",
        "Tile",
        "Transpose",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Split",
        "Pad",
        "Where",
        "Max",
        "Min",
        "ReduceMax",
        "ReduceMin",
        "Dropout",
        "SequenceInsert",
        "SequenceAt",
        "SplitToSequence",
        "ConcatFromSequence",
        "SequenceConstruct",
        "Optional",
        "OptionalGetElement",
        "Compress",
        "Trilu",
        "DepthToSpace",
        "Abs",
        "ArrayFeatureExtractor",
        "ScatterND",
        "ScatterElements",
    ]
)
_COMPARE = frozenset(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"))

# Index operand of an operator -> (operand that is indexed, attribute with the axis or None, default axis).
_INDEXED: dict[tuple[str, str, int], tuple[int, str | None, int]] = {
    ("", "Gather", 1): (0, "axis", 0),
    ("", "GatherElements", 1): (0, "axis", 0),
    ("", "ScatterElements", 1): (0, "axis", 0),
    ("", "Scatter", 1): (0, "axis", 0),
    ("", "RotaryEmbedding", 3): (1, None, 0),
    ("ai.onnx.ml", "ArrayFeatureExtractor", 1): (0, None, -1),
    ("com.microsoft", "EmbedLayerNormalization", 0): (2, None, 0),
    ("com.microsoft", "EmbedLayerNormalization", 1): (4, None, 0),
    ("com.microsoft", "EmbedLayerNormalization", 8): (3, None, 0),
    ("com.microsoft", "QEmbedLayerNormalization", 0): (2, None, 0),
    ("com.microsoft", "QEmbedLayerNormalization", 1): (4, None, 0),
    ("com.microsoft", "GatherBlockQuantized", 1): (0, "gather_axis", 0),
    ("com.microsoft", "RotaryEmbedding", 1): (2, None, 0),
    ("org.pytorch.aten", "ATen", 1): (0, None, 0),
}
# Operands that are masks: nonzero where there is something to attend to.
_MASKS = frozenset((
    ("com.microsoft", "EmbedLayerNormalization", 7), ("com.microsoft", "Attention", 3), ("com.microsoft", "QAttention", 5),
    ("com.microsoft", "MultiHeadAttention", 4), ("com.microsoft", "PackedAttention", 3),
))  # fmt: skip
# Operands that say how large something shall be, or where it starts: small positive numbers.
_SIZES = frozenset((
    ("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0), ("Tile", 1), ("Slice", 1), ("Slice", 2), ("Slice", 3),
    ("Slice", 4), ("Pad", 1), ("Resize", 2), ("Resize", 3), ("Upsample", 1), ("Range", 0), ("Range", 1), ("Range", 2),
    ("TopK", 1), ("Loop", 0), ("OneHot", 1), ("Split", 1), ("Trilu", 1), ("CenterCropPad", 1),
))  # fmt: skip


@dataclass
class Facts:
    """What was found about one input.

    low, high: inclusive bounds on its values, infinite where nothing bounds them; indexed: they come from an index;
    bounding: names of symbolic dimensions whose size bounds an index; slack: something unknown is added before the
    lookup, so stay well inside; compared: constants it is compared with; choices: keys it is looked up in (numbers or
    strings); mask: evidence for a mask; additive: a float mask that is added; size: it sets a size; lengths: lengths
    of rows (sequence_lens); state: initial state of a recurrent layer; centre, spread: per-feature statistics that the
    first layers normalise by (float arrays that broadcast over the last axis).
    """

    low: float = -math.inf
    high: float = math.inf
    indexed: bool = False
    bounding: set[str] = field(default_factory=set)
    slack: bool = False
    compared: set[float] = field(default_factory=set)
    choices: list = field(default_factory=list)
    mask: int = 0
    additive: bool = False
    size: bool = False
    lengths: bool = False
    state: bool = False
    centre: np.ndarray | None = None
    spread: np.ndarray | None = None

    def narrow(self, low: float, high: float) -> None:
        """Narrows the bounds, unless that left nothing (two uses that contradict each other: the first one stays)."""
        low, high = max(self.low, low), min(self.high, high)
        if low <= high:
            self.low, self.high = low, high


class Bounds:
    """Facts about the inputs of one model. The walk over its nested graphs is made once, at construction."""

    def __init__(self, model: ir.Model, *, limit: int = 20_000):
        """limit: steps of one walk; past it, what was found so far stands (errors of the runtime teach the rest)."""
        self._functions = model.functions
        self._limit = limit
        self._outer: dict[ir.Value, list[ir.Value]] = {}  # an inner graph's output -> the values that it becomes outside
        self._calls: dict[ir.Value, list[ir.Value]] = {}  # a function's output -> the outputs of its calls
        self._given: dict[ir.Value, list[ir.Value]] = {}  # a function's input -> what its calls give for it
        for graph in [model.graph, *(f.graph for f in model.functions.values())]:
            for node in graph.all_nodes():
                self._link(node)

    def of(self, value: ir.Value) -> Facts:
        """What the graph does with an input."""
        facts = Facts()
        todo: list[tuple[ir.Value, float, float, bool]] = [(value, 1.0, 0.0, False)]
        seen: set[tuple[int, float, float]] = set()
        steps = 0
        while todo and steps < self._limit:
            current, a, b, slack = todo.pop()
            if (id(current), a, b) in seen:
                continue
            seen.add((id(current), a, b))
            for outer in (*self._outer.get(current, ()), *self._calls.get(current, ())):
                todo.append((outer, a, b, slack))
            for node, index in current.uses():
                steps += 1
                for following, a2, b2 in self._step(facts, node, index, a, b, slack, current):
                    todo.append((following, a2, b2, slack or ((a2, b2) == (a, b) and node.op_type == "Add")))
        return facts

    def _link(self, node: ir.Node) -> None:
        """Remembers where the values of inner graphs and functions come out."""
        function = self._functions.get(node.op_identifier())
        if function is not None:
            for inner, outer in zip(function.outputs, node.outputs, strict=False):
                self._calls.setdefault(inner, []).append(outer)
            for inner, given in zip(function.inputs, node.inputs, strict=False):
                if given is not None:
                    self._given.setdefault(inner, []).append(given)
        for graph in graphs_in(node):
            outputs = list(graph.outputs)
            if node.op_type == "Loop":
                # outputs: condition, carried values (which come in again), stacked ones
                for inner, again in zip(outputs[1:], list(graph.inputs)[2:], strict=False):
                    self._outer.setdefault(inner, []).append(again)
                outputs = outputs[1:]
            for inner, outer in zip(outputs, node.outputs, strict=False):
                self._outer.setdefault(inner, []).append(outer)

    def _step(
        self, facts: Facts, node: ir.Node, index: int, a: float, b: float, slack: bool, value: ir.Value
    ) -> Iterator[tuple[ir.Value, float, float]]:
        """Records what one use says, and yields what to follow: (value, a, b)."""
        op, domain = node.op_type, node.domain
        function = self._functions.get(node.op_identifier())
        if function is not None:
            if index < len(function.inputs):
                yield function.inputs[index], a, b
            return
        if op in ("Loop", "Scan"):
            for graph in graphs_in(node):
                if index < len(graph.inputs):
                    yield list(graph.inputs)[index], a, b  # Loop: (count, condition, carried); Scan: one to one
            if (op, index) not in _SIZES:
                return
        key = (domain, op, index)
        if key in _INDEXED:
            facts.indexed = True
            facts.slack |= slack
            data, attr, axis = _INDEXED[key]
            if attr and attr in node.attributes:
                axis = node.attributes[attr].as_int()
            for table in self._sources(node.inputs[data] if data < len(node.inputs) else None):
                self._bound(facts, dim_of(table, axis), a, b)
            return
        if op in ("GatherND", "ScatterND") and index == 1:
            facts.indexed = True
            shape, last = shape_of(self._sources(node.inputs[0])[0]), shape_of(value)
            depth = last[-1] if last and isinstance(last[-1], int) else 1
            first = node.attributes["batch_dims"].as_int() if "batch_dims" in node.attributes else 0
            for dim in (shape or [])[first : first + depth]:
                self._bound(facts, dim, a, b)
            return
        if op == "OneHot" and index == 0:
            depth = constant_scalar(self._sources(node.inputs[1])[0])
            facts.indexed = True
            if depth is not None:
                self._bound(facts, int(depth), a, b)
            return
        if key in _MASKS:
            facts.mask += 2
            return
        if domain == "" and (op, index) in _SIZES:
            facts.size = True
            return
        if op in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM") and index >= 4:
            facts.lengths |= index == 4
            facts.state |= index in (5, 6)
            return
        if op == "ReverseSequence" and index == 1:
            facts.lengths = True
            return
        if domain == "ai.onnx.ml":
            _learn(facts, node)
            if op not in ("CastMap", "Normalizer", "ZipMap", "Scaler", "Imputer"):
                return
            yield node.outputs[0], a, b
            return
        yield from self._arithmetic(facts, node, index, a, b)

    def _arithmetic(self, facts: Facts, node: ir.Node, index: int, a: float, b: float) -> Iterator[tuple[ir.Value, float, float]]:
        op = node.op_type
        other = node.inputs[1 - index] if len(node.inputs) == 2 and index < 2 else None
        other = self._sources(other)[0]
        number = constant_scalar(other)
        if op in _COMPARE:
            if number is not None and a:
                facts.compared.add((number - b) / a)
                if (number - b) / a in (0.0, 1.0):
                    facts.mask += 1
            elif (table := constant_array(other)) is not None and table.size > 1 and op == "Equal" and table.dtype.kind in "iu" and a:
                facts.indexed = True  # a one-hot spelled out: beyond the table nothing is ever equal
                low, high = sorted(((float(table.min()) - b) / a, (float(table.max()) - b) / a))
                facts.narrow(math.ceil(low), math.floor(high))
            elif table is not None and table.size and op != "Equal":
                # compared with a whole table: values within it make a difference, values beyond it none
                facts.compared |= {float(np.quantile(table, 0.25)), float(np.quantile(table, 0.75))}
        elif op in ("And", "Or", "Not", "Xor"):
            yield node.outputs[0], a, b  # what becomes of it tells: a bool alone is no mask
        elif op == "Where" and index == 0:
            facts.mask += 1
        elif op in ("Sub", "Add", "Mul", "Div") and len(node.inputs) == 2:
            if number is None:
                if op == "Div" and index == 1:
                    facts.size = True  # an integer that is divided by must not be 0
                if (vector := constant_array(other)) is not None:
                    _normalised(facts, op, index, vector, node)
                if op in ("Add", "Sub"):  # an unknown summand: the bound is a rough one
                    facts.additive |= is_float_value(node.outputs[0])
                    yield node.outputs[0], (a if op == "Add" or index == 0 else -a), b
                return
            if op == "Sub" and index == 1 and number == 1.0 and (a, b) == (1.0, 0.0) and is_float_value(node.outputs[0]):
                facts.mask += 2  # 1 - mask, the way masks are turned round
            if op == "Mul" and number <= -100:
                facts.mask += 2  # ... and made very negative
            yield from _shifted(node, op, index, number, a, b)
        elif op == "Neg":
            yield node.outputs[0], -a, -b
        elif op == "Cast" and "to" in node.attributes and node.attributes["to"].as_int() == ir.DataType.BOOL:
            facts.mask += 2
        elif op == "CumSum" and index == 0:
            facts.mask += 1
        elif op in _MOVE and node.outputs:
            if op == "Split":
                for output in node.outputs:
                    yield output, a, b
            else:
                yield node.outputs[0], a, b

    def _sources(self, value: ir.Value | None) -> list[ir.Value | None]:
        """The value itself, or, for an input of a function, what its calls give for it, through nested calls."""
        found: list[ir.Value | None] = [value]
        for _ in range(16):  # calls nest no deeper in real models, and a function that calls itself is invalid
            following = [g for v in found for g in (self._given.get(v, [v]) if v is not None else [v])]
            if following == found:
                break
            found = list(dict.fromkeys(following))
        return found

    @staticmethod
    def _bound(facts: Facts, size: int | str | None, a: float, b: float) -> None:
        """0 <= a * x + b <= size - 1."""
        if isinstance(size, str):
            facts.bounding.add(size)
        elif size is not None and a:
            low, high = sorted(((0 - b) / a, (size - 1 - b) / a))
            facts.narrow(math.ceil(low), math.floor(high))


def _shifted(node: ir.Node, op: str, index: int, number: float, a: float, b: float) -> Iterator[tuple[ir.Value, float, float]]:
    out = node.outputs[0]
    if op == "Add":
        yield out, a, b + number
    elif op == "Sub":
        yield (out, a, b - number) if index == 0 else (out, -a, number - b)
    elif op == "Mul" and number:
        yield out, a * number, b * number
    elif op == "Div" and index == 0 and number:
        yield out, a / number, b / number


def _normalised(facts: Facts, op: str, index: int, vector: np.ndarray, node: ir.Node) -> None:
    """``(x - mean) / std`` with constants: the statistics that the model was trained on. Only the innermost axis."""
    if index != 0 or vector.ndim != 1 or not np.all(np.isfinite(vector)) or not is_float_value(node.outputs[0]):
        return
    if op == "Sub" and facts.centre is None:
        facts.centre = vector.astype(np.float64)
    elif op == "Div" and facts.spread is None and facts.centre is not None and np.all(vector != 0):
        facts.spread = np.abs(vector).astype(np.float64)


def _learn(facts: Facts, node: ir.Node) -> None:
    """What the attributes of an ai.onnx.ml operator say of its input: keys of a lookup, thresholds, offsets."""
    attrs = {k: v.value for k, v in node.attributes.items() if not v.is_ref()}
    for key in ("keys_int64s", "keys_strings", "keys_floats", "cats_int64s", "cats_strings", "classes_strings",
                "pool_int64s", "pool_strings", "int64_vocabulary", "string_vocabulary", "cats"):  # fmt: skip
        if attrs.get(key) and node.op_type in (
            "LabelEncoder", "CategoryMapper", "OneHotEncoder", "DictVectorizer", "TfIdfVectorizer"
        ):  # fmt: skip
            facts.choices = [c.decode() if isinstance(c, bytes) else c for c in attrs[key]]
            return
    if node.op_type == "Scaler" and attrs.get("scale"):
        scale = np.asarray(attrs["scale"], np.float64)
        facts.centre = np.asarray(attrs.get("offset", [0.0]), np.float64)
        facts.spread = 1.0 / np.where(scale == 0, 1.0, np.abs(scale))
    if node.op_type.startswith("TreeEnsemble"):
        ids, values = attrs.get("nodes_featureids"), attrs.get("nodes_values")
        if values is None and "nodes_values_as_tensor" in attrs:
            values = attrs["nodes_values_as_tensor"].numpy()
        if ids is None or values is None or len(ids) != len(values) or not len(ids):
            return
        ids, values = np.asarray(ids), np.asarray(values, np.float64)
        modes = attrs.get("nodes_modes")
        inner = values != 0
        if modes is not None and len(modes) == len(ids):
            inner = np.array([m not in (b"LEAF", "LEAF") for m in modes])
        ids, values = ids[inner], values[inner]
        if not len(ids):
            return
        count = int(ids.max()) + 1
        centre, spread = np.zeros(count), np.ones(count)
        for feature in range(count):
            thresholds = values[ids == feature]
            if len(thresholds):
                centre[feature] = np.median(thresholds)
                spread[feature] = max(float(np.std(thresholds)), 0.1 * abs(centre[feature]), 1e-3)
        facts.centre, facts.spread = centre, spread
