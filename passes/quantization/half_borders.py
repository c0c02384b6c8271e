"""Casts between what computes in float32 and what computes in 16 bits: where they must stand, and how few there can be."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from graphopt.model import DECLARED, INFERRED
from graphopt.rewriting import Context, constant_tensor, is_used, remove_unused, use_count

FLOAT = ir.DataType.FLOAT

#: Operators that gain by narrower numbers even where both sides of them are float32.
_HEAVY = frozenset({
    "Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "FusedMatMul", "Gemm", "GroupQueryAttention", "MatMul",
    "MultiHeadAttention",
})  # fmt: skip
_ROUNDS = 4
_MANY = 64  # consumers of a value; what more of them want decides nothing


def needless(context: Context, narrow: set[ir.Node]) -> set[ir.Node]:
    """Those of the nodes that are to become narrow for which the Casts around them would be more than without them.

    Light nodes between float32 neighbours: single ones, and stretches that touch no heavy node.
    """
    narrow = set(narrow)
    left: set[ir.Node] = set()
    for _ in range(_ROUNDS):
        before = len(left)
        for stretch in _stretches(context, narrow):
            for group in ([node] for node in stretch) if len(stretch) > 1 else ():
                _flip(context, narrow, left, group)
            _flip(context, narrow, left, [n for n in stretch if n in narrow])
        if len(left) == before:
            break
    return left


def _flip(context: Context, narrow: set[ir.Node], left: set[ir.Node], group: list[ir.Node]) -> None:
    values = dict.fromkeys(v for n in group for v in (*n.inputs, *n.outputs) if v is not None and is_float(context, v))
    now = sum(_casts(v, narrow) for v in values)
    if sum(_casts(v, narrow.difference(group)) for v in values) < now:
        narrow.difference_update(group)
        left.update(group)


def _stretches(context: Context, narrow: set[ir.Node]) -> list[list[ir.Node]]:
    """Light nodes that are to become narrow, in groups that are joined by float values."""
    found, seen = [], set()
    for first in context.model.graph:
        if first not in narrow or first.op_type in _HEAVY or first in seen:
            continue
        stretch = [first]
        seen.add(first)
        for node in stretch:  # grows as it is walked
            for value in (*node.inputs, *node.outputs):
                if value is None or not is_float(context, value):
                    continue
                for near in (value.producer(), *(u.node for u in _few_uses(value))):
                    if near is not None and near in narrow and near.op_type not in _HEAVY and near not in seen:
                        seen.add(near)
                        stretch.append(near)
        found.append(stretch)
    return found


def _few_uses(value: ir.Value) -> Iterable[ir.Usage]:
    return value.uses() if use_count(value) <= _MANY else ()


def _casts(value: ir.Value, narrow: set[ir.Node]) -> int:
    """How many Casts a value needs."""
    if constant_tensor(value) is not None:
        return 0
    home = value.producer() in narrow
    others = any((u.node in narrow) != home for u in _few_uses(value))
    return int(others or (home and value.is_graph_output()))


def is_float(context: Context, value: ir.Value) -> bool:
    """Whether a value is a tensor of float32."""
    return bool(value.name) and context.dtype(value) == FLOAT and not isinstance(value.type, ir.SequenceType | ir.OptionalType)


class Borders:
    """Carries a decision out: narrows nodes, and puts one Cast between a value and all that want it in the other type.

    Attributes:
        casts: how many were made.
        constants: how many constants were converted, each once.
    """

    def __init__(self, context: Context, narrow: set[ir.Node], to: ir.DataType) -> None:
        self.context, self.narrow, self.to = context, narrow, to
        self.graph = context.model.graph
        self.casts = self.constants = 0
        self._narrowed: dict[ir.Value, ir.Value] = {}

    def carry_out(self) -> None:
        """Afterwards what was known of shapes and nodes holds no more."""
        floats: dict[ir.Value, None] = {}
        for value in self.graph.inputs:
            if is_float(self.context, value):
                floats[value] = None
        for value in self.graph.initializers.values():
            if is_float(self.context, value):
                floats[value] = None
        for node in self.graph:
            floats.update(dict.fromkeys(v for v in node.outputs if is_float(self.context, v)))
        outputs = {id(v) for v in self.graph.outputs}
        for node in [n for n in self.graph if n in self.narrow]:
            self._narrow_attributes(node)
        for value in floats:
            if constant_tensor(value) is not None:
                self._constant(value)
            else:
                self._value(value, id(value) in outputs)
        self._drop_empty_casts()
        self.context.invalidate(shapes=True)

    def _value(self, value: ir.Value, is_output: bool) -> None:
        home = value.producer() in self.narrow
        uses = [(u.node, u.idx) for u in value.uses()]
        others = [(node, i) for node, i in uses if (node in self.narrow) != home]
        if home:
            _retype(value, self.to)
        if home and is_output:
            cast = self._output(value)
        elif others:
            cast = self._cast(value, FLOAT if home else self.to)
        else:
            return
        for node, i in others:
            node.replace_input_with(i, cast)

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """A Cast right behind what makes the value, so that whoever may read the value may read it."""
        name = self.context.index.fresh_name(f"{value.name}/{to.name.lower()}")
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], name=name)
        made = node.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(to), value.shape
        made.meta[INFERRED] = True
        producer = value.producer()
        first = next(iter(self.graph), None)
        if producer is not None:
            self.graph.insert_after(producer, [node])
        elif first is not None:
            self.graph.insert_before(first, [node])
        # It belongs to what is narrow beside it, and goes when that is held back.
        beside = producer if producer in self.narrow else next(u.node for u in value.uses() if u.node in self.narrow)
        node.meta.update(beside.meta)
        self.casts += 1
        return made

    def _output(self, value: ir.Value) -> ir.Value:
        """An output of the graph keeps its name and its type: a Cast takes them over."""
        name, meta = value.name, dict(value.meta)
        made = self._cast(value, FLOAT)
        value.name = self.context.index.fresh_name(f"{name}/{self.to.name.lower()}")
        made.name = name
        made.meta.clear()
        made.meta.update(meta)
        if DECLARED in made.meta:
            made.meta[DECLARED] = (ir.TensorType(FLOAT), made.meta[DECLARED][1])
        value.meta.pop(DECLARED, None)
        value.meta[INFERRED] = True
        for i, other in enumerate(self.graph.outputs):
            if other is value:
                self.graph.outputs[i] = made
        return made

    def _constant(self, value: ir.Value) -> None:
        wanted = [(u.node, u.idx) for u in value.uses() if u.node in self.narrow]
        if not wanted:
            return
        tensor = constant_tensor(value)
        assert tensor is not None
        name = self.context.index.fresh_name(f"{value.name}_{self.to.name.lower()}")
        new = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(self.to), const_value=narrowed(tensor, self.to, name)
        )
        new.meta[INFERRED] = True
        self.graph.initializers.add(new)
        self.constants += 1
        for node, i in wanted:
            node.replace_input_with(i, new)
        if is_used(value):
            return
        if value.is_initializer():
            if not value.is_graph_input():
                self.graph.initializers.pop(value.name)
        else:
            remove_unused([value.producer()], self.context)  # type: ignore[list-item]

    def _narrow_attributes(self, node: ir.Node) -> None:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(self.to))
        elif node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            tensor = ir.Tensor(np.zeros(1, np.float32)) if given is None else given.as_tensor()
            node.attributes["value"] = ir.AttrTensor("value", narrowed(tensor, self.to, tensor.name))

    def _drop_empty_casts(self) -> None:
        """Casts that were in the model, and now have nothing to do."""
        for node in [n for n in self.graph if n.op_type == "Cast" and n.domain == ""]:
            source, result = node.inputs[0], node.outputs[0]
            if source is None or source.dtype is None or node.attributes["to"].is_ref() or source.dtype != node.attributes["to"].as_int():
                continue
            if result.is_graph_output() or source.dtype != self.to:
                continue
            result.replace_all_uses_with(source)
            remove_unused([node], self.context)


def narrowed(tensor: ir.TensorProtocol, to: ir.DataType, name: str | None) -> ir.Tensor:
    """A float32 constant in another type; numbers beyond its largest become infinite."""
    with np.errstate(over="ignore", under="ignore"):
        return ir.Tensor(np.asarray(tensor.numpy()).astype(to.numpy()), name=name, dtype=to)


def _retype(value: ir.Value, to: ir.DataType) -> None:
    value.type = ir.TensorType(to)
    if DECLARED in value.meta:
        value.meta[DECLARED] = (value.type, value.meta[DECLARED][1])
