"""What constant folding computes, what it leaves, and how much it may grow the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, attribute_graphs, constant_tensor, is_sparse, is_used, remove_unused, use_count
from graphopt.rewriting.shapes import INFERRED

from . import evaluation, reference
from .evaluation import Call, Elsewhere, Unsure

_SPENT = "graphopt.folding.spent"
_NODE_BYTES = 64  # what a node takes in a file, about: operator, names, attributes
_TENSOR_BYTES = 24  # what a constant takes besides its data, about
_LARGE = 1 << 28  # bytes of an intermediate value
_SMALL = 1024  # bytes up to which narrow integers are no weights
_NARROW = frozenset((ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16))
_KEPT = 1 << 16  # bytes up to which an intermediate value is kept for the next that needs it
# ONNX Runtime computes on these in float32 and leaves out casts to them and back: what is cast to them is not rounded.
_HALVES = frozenset((ir.DataType.FLOAT16, ir.DataType.BFLOAT16))
# Inputs that runtimes pack before the first run where they are constant, and multiply by other kernels then, which round
# otherwise.
_PACKED = {
    "Conv": (1,), "ConvTranspose": (1,), "GRU": (1, 2), "Gemm": (0, 1), "LSTM": (1, 2), "MatMul": (0, 1), "RNN": (1, 2),
}
# Left to passes of their own: folding would copy the data that a plain rewiring shares.
_NEVER_ALONE = frozenset(("Identity",))


@dataclass
class Plan:
    """What becomes of a value if it is folded.

    Attributes:
        nodes: nodes that nothing would need any more.
        freed: bytes of constants that nothing would need any more.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    freed: int = 0


class Folder:
    """One run of constant folding over a model."""

    def __init__(self, context: Context, growth: int, total: float, *, exact: bool) -> None:
        self.context = context
        self.exact = exact
        self.operators = frozenset(evaluation.EXACT) | reference.EXACT | (frozenset() if exact else reference.ROUNDING)
        self.growth = growth
        self.arrays: dict[ir.Value, np.ndarray] = {}
        self.failed: set[ir.Node] = set()
        self.foldable: dict[ir.Value, None] = {}
        meta = context.model.graph.meta
        spent, limit = meta.get(_SPENT, (0, None))
        if limit is None:
            limit = int(total * sum(t.nbytes for t in _weights(context)))
        self.spent, self.limit = spent, limit

    def run(self) -> None:
        """Fold everything that is needed and may be folded."""
        for graph in self.context.index.scopes:
            self._mark(graph)
        pending = [v for v in self.foldable if self._is_needed(v)]
        pending.reverse()
        seen = set(pending)
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is None or node.graph is None or not is_used(value) or self._fold(node, value):
                continue
            # It stays: then what it consumes is needed.
            for source in reversed(node.inputs):
                if source is not None and source in self.foldable and source not in seen:
                    seen.add(source)
                    pending.append(source)
        self.context.model.graph.meta[_SPENT] = (self.spent, self.limit)

    # --- what can be folded -------------------------------------------------------------------------------------

    def _mark(self, graph: ir.Graph) -> None:
        """Note the values of a graph that depend on constants alone; outer graphs come first."""
        context = self.context
        scope = context.index.scopes[graph]
        in_function = scope.function is not None
        known_opset = scope.opsets.get("", 0) >= 7
        for node in graph:
            if node.op_type == "Constant" or node.domain not in ("", "ai.onnx") or not node.outputs:
                continue
            if not in_function and context.known_value(node.outputs[0]) is not None:
                for value in node.outputs:
                    if context.known_value(value) is not None:
                        self.foldable[value] = None
            elif known_opset and node.op_type in self.operators and node.inputs and self._is_constant(node):
                for value in node.outputs:
                    if value.name:
                        self.foldable[value] = None

    def _is_constant(self, node: ir.Node) -> bool:
        for attribute in node.attributes.values():
            if attribute.is_ref() or attribute_graphs(attribute):
                return False
        if node.op_type == "BatchNormalization" and (len(node.outputs) > 1 or _flag(node, "training_mode")):
            return False
        if not all(v is None or v in self.foldable or _readable(constant_tensor(v)) for v in node.inputs):
            return False
        if node.op_type in ("Cast", "CastLike"):
            if self.context.dtype(node.outputs[0]) in _HALVES:
                return False
            tensor = constant_tensor(node.inputs[0])
            size = tensor.nbytes if tensor is not None else self._foreseen(node.inputs[0])
            if self.context.dtype(node.inputs[0]) in _NARROW and (size is None or size > _SMALL):
                self.context.log.refuse(node, "its weights are kept in their narrow type")
                return False
        return True

    def _is_needed(self, value: ir.Value) -> bool:
        if value.is_graph_output():
            return True
        return any(not any(out in self.foldable for out in usage.node.outputs) for usage in value.uses())

    # --- folding one value --------------------------------------------------------------------------------------

    def _fold(self, node: ir.Node, value: ir.Value) -> bool:
        context = self.context
        if node.op_type in _NEVER_ALONE and constant_tensor(node.inputs[0]) is not None:
            return False
        if node in self.failed or (self.exact and _becomes_weight(value)):
            return False
        plan = self._plan(node, value)
        size = self._foreseen(value)
        try:
            if size is not None:
                self._check_growth(node, size, plan)
            array = self._array(value)
            self._check_result(value, array)
            self._check_growth(node, array.nbytes, plan)
        except Unsure as unsure:
            self.failed.add(node)
            if not isinstance(unsure, Elsewhere):
                context.log.refuse(node, str(unsure))
            return False
        except Exception as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            self.failed.add(node)
            context.log.refuse(node, f"it cannot be evaluated: {text}")
            return False
        if not context.log.permit(node):
            return False
        context.log.settled(node)
        self.spent += max(0, self._net(array.nbytes, plan))
        self._replace(node, value, array)
        return True

    def _plan(self, node: ir.Node, value: ir.Value) -> Plan:
        """What would be unused once nothing takes `value` from `node`: only what is wholly used by that is entered."""
        plan = Plan()
        if any(is_used(v) for v in node.outputs if v is not value):
            return plan
        left: dict[ir.Value, int] = {}
        pending = [node]
        while pending:
            dead = pending.pop()
            plan.nodes.append(dead)
            for source in dead.inputs:
                if source is None:
                    continue
                left[source] = left.get(source, use_count(source)) - 1
                if left[source] or source.is_graph_output():
                    continue
                producer = source.producer()
                if producer is None or producer.op_type == "Constant":
                    tensor = constant_tensor(source)
                    plan.freed += tensor.nbytes if tensor is not None else 0
                if producer is not None and all(not left.get(v, use_count(v)) and not v.is_graph_output() for v in producer.outputs):
                    pending.append(producer)
        return plan

    def _foreseen(self, value: ir.Value) -> int | None:
        """The bytes that a value will take, without computing it; None: not known."""
        dims, dtype = self.context.static_dims(value), value.dtype
        if dims is None or dtype is None or dtype == ir.DataType.STRING:
            return None
        size = 1
        for dim in dims:
            size *= dim
        return int(size * dtype.itemsize)

    def _net(self, size: int, plan: Plan) -> int:
        return size + _TENSOR_BYTES - plan.freed - _NODE_BYTES * len(plan.nodes)

    def _check_growth(self, node: ir.Node, size: int, plan: Plan) -> None:
        net = self._net(size, plan)
        if net > self.growth:
            raise Unsure(f"folded it would take {size:,} bytes in the place of {plan.freed:,}")
        if net > 0 and self.spent + net > self.limit:
            raise Unsure(f"folded it would take {size:,} bytes in the place of {plan.freed:,}; the model may grow by {self.limit:,} in all")

    def _check_result(self, value: ir.Value, array: np.ndarray) -> None:
        dims, dtype = self.context.dims(value), self.context.dtype(value)
        if dtype is not None and array.dtype != dtype.numpy():
            raise Unsure(f"it evaluates to {array.dtype}, not to {dtype.name}")
        if dims is not None and (len(dims) != array.ndim or any(isinstance(d, int) and d != size for d, size in zip(dims, array.shape))):
            raise Unsure(f"it evaluates to shape {list(array.shape)}, not to {list(dims)}")

    def _replace(self, node: ir.Node, value: ir.Value, array: np.ndarray) -> None:
        context, graph = self.context, node.graph
        tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=value.name)
        if value.is_graph_output() or context.scope(node).function is not None:
            constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], num_outputs=1)
            constant.name = context.index.fresh_name(f"{value.name}/constant")
            graph.insert_before(node, constant)
            new = constant.outputs[0]
            context.index.add(constant)
            context.log.provenance([constant], [node])
        else:
            new = ir.Value(const_value=tensor)
        name, value.name = value.name, context.index.fresh_name(f"{value.name}/replaced")
        new.name = name
        new.type, new.shape = value.type or ir.TensorType(tensor.dtype), ir.Shape(array.shape)
        if value.is_graph_output():
            new.type, new.shape = value.type, value.shape
            new.meta.update(value.meta)
        else:
            new.meta[INFERRED] = True
        new.metadata_props.update(value.metadata_props)
        value.replace_all_uses_with(new, replace_graph_outputs=True)
        if new.producer() is None:
            graph.initializers.add(new)
        self.foldable.pop(value, None)
        if array.nbytes <= _KEPT:
            self.arrays[new] = array
        remove_unused([node], context)

    # --- values -------------------------------------------------------------------------------------------------

    def _array(self, value: ir.Value) -> np.ndarray:
        """The data of a constant or foldable value; its sources are computed first, without recursion."""
        results: dict[ir.Value, np.ndarray] = {}
        pending = [value]
        while pending:
            at = pending[-1]
            if at in results:
                pending.pop()
                continue
            ready = self._ready(at)
            if ready is not None:
                results[at] = ready
                pending.pop()
                continue
            node = at.producer()
            missing = [v for v in node.inputs if v is not None and v not in results]
            if missing:
                pending.extend(missing)
                continue
            for output, array in zip(node.outputs, self._evaluate(node, [None if v is None else results[v] for v in node.inputs])):
                results[output] = array
                if array.nbytes <= _KEPT:
                    self.arrays[output] = array
            pending.pop()
        return results[value]

    def _ready(self, value: ir.Value) -> np.ndarray | None:
        kept = self.arrays.get(value)
        if kept is not None:
            return kept
        tensor = constant_tensor(value)
        if tensor is not None:
            return tensor.numpy()
        if self.context.scope(value.producer()).function is not None:
            return None
        known = self.context.known_value(value)
        return None if known is None else known.astype(value.dtype.numpy())

    def _evaluate(self, node: ir.Node, inputs: list[np.ndarray | None]) -> list[np.ndarray]:
        opsets = self.context.scope(node).opsets
        if node.op_type in evaluation.EXACT:
            try:
                return evaluation.evaluate(Call(node, inputs, opsets.get("", 0), _LARGE))
            except Unsure:
                if self.exact or node.op_type not in reference.ROUNDING:
                    raise
        return reference.evaluate(node, inputs, opsets)


_NUMBERS = frozenset(
    (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.BOOL, ir.DataType.INT32,
     ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64, *_NARROW)
)


def _flag(node: ir.Node, name: str) -> bool:
    found = node.attributes.get(name)
    return found is not None and bool(found.as_int())


def _becomes_weight(value: ir.Value) -> bool:
    """Whether an operator multiplies by a value as by a weight."""
    return any(usage.idx in _PACKED.get(usage.node.op_type, ()) for usage in value.uses())


def _readable(tensor: ir.TensorProtocol | None) -> bool:
    """Whether a constant is one whose elements are plain numbers."""
    return tensor is not None and not is_sparse(tensor) and tensor.dtype in _NUMBERS


def _weights(context: Context) -> Iterator[ir.TensorProtocol]:
    """The constants of the model."""
    for graph in context.index.scopes:
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
    for node in context.index.of_types(("Constant",)):
        tensor = constant_tensor(node.outputs[0]) if node.outputs else None
        if tensor is not None:
            yield tensor
