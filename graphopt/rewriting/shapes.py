"""Shape inference over the graph in memory, sound enough to rewrite by.

The per-operator functions are those of `onnx_shape_inference`. Traversal, and the places where that library assumes
more than the model promises, are ours: initializers that a caller may override are not constants, loop-carried values
may change shape from one iteration to the next, two unlike symbolic dimensions do not broadcast to the first, and a
shape that a file declares for an inner value is a claim to compare with, not a fact. One name for several
dimensions of one input (as PaddleOCR's exporter writes) does not make them equal.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.rewriting.constants import constant_tensor

Dim: TypeAlias = int | str

INFERRED = "graphopt.inferred"
"""Mark in `Value.meta`: type and shape were inferred, so saving leaves them out."""
DECLARED = "graphopt.declared"
"""In `Value.meta`: the (type, shape) that the file declared; saving writes these."""

_PLACEHOLDERS = ("", "?", "None", "unknown", "dynamic", "-1")
_BROADCASTING = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual",
     "Where", "Min", "Max", "Mean", "Sum", "PRelu", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Expand", "MatMul")
)
_KNOWN_VALUE_LIMIT = 64  # elements; longer integer vectors are data, not shapes


class ShapeAnalysis:
    """Types, shapes and shape-determined values of a model, stored on its values and marked as inferred.

    Attributes:
        conflicts: what files declare against what is inferred, one line each, for the report.
    """

    def __init__(self, model: ir.Model) -> None:
        self.conflicts: list[str] = []
        self._library = _library_context(model)
        self._symbols = 0
        self._infer_model(model)

    # --- questions ----------------------------------------------------------------------------------------------

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The shape of a value: an int or a symbolic expression a dimension; None where the rank is unknown."""
        if value is None or value.shape is None:
            return None
        return tuple(d if isinstance(d, int) else (d.value or self._symbol()) for d in value.shape.dims)

    def known_value(self, value: ir.Value | None) -> np.ndarray | None:
        """The int64 elements (rank 0 or 1) of a value that shapes determine, or None."""
        if value is None or value.shape is None or value.shape.rank() > 1:
            return None
        data = self._library.propagated(value)
        if data is None or any(not isinstance(d, int) for d in data):
            return None
        array = np.asarray(data, np.int64)
        if value.shape.rank() == 0:
            return array.reshape(()) if array.size == 1 else None
        return array

    def partial_value(self, value: ir.Value | None) -> list[Dim] | None:
        """The elements of an integer vector, each a number or a symbolic expression; None where nothing is known."""
        if value is None:
            return None
        data = self._library.get_symbolic_value(value)
        return None if data is None else [d if isinstance(d, int) else (d.value or self._symbol()) for d in data]

    # --- upkeep -------------------------------------------------------------------------------------------------

    def infer(self, node: ir.Node) -> None:
        """Infer the outputs of one node that was made or whose inputs changed."""
        self._infer_node(node, report=False)

    def forget(self, node: ir.Node) -> None:
        """Drop what is held for the outputs of a node that was removed."""
        for value in node.outputs:
            self._library.drop(value)

    # --- inference ----------------------------------------------------------------------------------------------

    def _infer_model(self, model: ir.Model) -> None:
        for value in model.graph.inputs:
            if value.is_initializer():
                continue
            remember_declared(value)
            if value.shape is not None:
                value.shape = self._independent(value.shape)
        hidden = [(v, v.const_value) for v in model.graph.initializers.values() if v.is_graph_input()]
        for value, _ in hidden:
            value.const_value = None  # the library would read it as a constant
        # The library logs what it cannot infer; that a shape stays unknown is no news to the user.
        logger = logging.getLogger("onnx_shape_inference")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            self._infer_graph(model.graph)
        finally:
            logger.setLevel(level)
            for value, tensor in hidden:
                value.const_value = tensor

    def _infer_graph(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            if value.const_value is not None and not value.is_graph_input():
                if value.shape is None or value.shape.rank() != value.const_value.shape.rank() or value.shape != value.const_value.shape:
                    remember_declared(value)
                    value.shape = ir.Shape(value.const_value.shape.numpy())
                if value.type is None:
                    value.meta[INFERRED] = True
                    value.type = ir.TensorType(value.const_value.dtype)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                    self._infer_body(node, attribute.as_graph())
            self._infer_node(node, report=True)

    def _infer_body(self, node: ir.Node, body: ir.Graph) -> None:
        for i, value in enumerate(body.inputs):
            remember_declared(value)
            value.shape = None  # carried values may change shape, and a declared shape is only a claim
            if node.op_type == "Loop" and i < 2:
                value.shape = ir.Shape([])
        self._infer_graph(body)

    def _infer_node(self, node: ir.Node, *, report: bool) -> None:
        for value in node.outputs:
            if report:
                remember_declared(value)
            else:
                value.meta[INFERRED] = True
            value.shape = None
        function = self._library.function_for(node)
        if function is not None:
            try:
                if node.op_type == "If":
                    self._infer_if(node, function)
                else:
                    function(self._library, node)
            except Exception:
                for value in node.outputs:
                    value.shape = None
            if node.op_type in ("Loop", "Scan"):
                for value in node.outputs:
                    value.shape = None
            elif node.op_type in _BROADCASTING:
                self._check_broadcast(node)
        for value in node.outputs:
            if value.shape is None and function is None:
                declared = value.meta.get(DECLARED)
                if declared is not None:
                    value.type, value.shape = declared  # nothing else is known of an opaque operator
            elif report and value.shape is not None:
                self._compare(node, value)

    def _infer_if(self, node: ir.Node, function) -> None:
        branches = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        function(self._library, node)
        for i, value in enumerate(node.outputs):
            if any(i >= len(b.outputs) or b.outputs[i].shape is None for b in branches):
                value.shape = None

    def _check_broadcast(self, node: ir.Node) -> None:
        """Where two unlike symbolic dimensions meet, the result is neither: one of them may be 1."""
        output = node.outputs[0]
        if output.shape is None or output.shape.is_static():
            return
        if node.op_type == "Expand":
            target = self.partial_value(node.inputs[1]) if len(node.inputs) > 1 else None
            shapes = [self.dims(node.inputs[0]), None if target is None else tuple(target)]
        else:
            shapes = [self.dims(v) for v in node.inputs if v is not None]
        if any(s is None for s in shapes):
            return
        rank = output.shape.rank()
        skip = 2 if node.op_type == "MatMul" else 0
        dims = list(output.shape.dims)
        for axis in range(rank - skip):
            here = {s[axis - rank] for s in shapes if s is not None and len(s) >= rank - axis}
            if not any(isinstance(d, int) and d != 1 for d in here) and len(here - {1}) > 1:
                dims[axis] = ir.SymbolicDim(self._symbol())
        output.shape = ir.Shape(dims)

    def _compare(self, node: ir.Node, value: ir.Value) -> None:
        declared = value.meta.get(DECLARED)
        if declared is None or declared[1] is None:
            return
        claimed, shape = declared[1], value.shape
        if claimed.rank() != shape.rank() or any(
            isinstance(a, int) and isinstance(b, int) and a != b and a >= 0 for a, b in zip(claimed.dims, shape.dims)
        ):
            self.conflicts.append(
                f"{value.name!r} (of {node.op_type}) is declared as {_text(claimed)} but is {_text(shape)}; the declaration was not used"
            )

    def _independent(self, shape: ir.Shape) -> ir.Shape:
        """The shape with a fresh symbol for each placeholder and for each name that is repeated in it."""
        names = [None if isinstance(d, int) else d.value for d in shape.dims]
        dims: list[int | ir.SymbolicDim] = []
        for dim, name in zip(shape.dims, names):
            if isinstance(dim, int) and dim > 0:
                dims.append(dim)
            elif isinstance(dim, int) or name is None or name in _PLACEHOLDERS or names.count(name) > 1 or not name.isidentifier():
                dims.append(ir.SymbolicDim(self._symbol()))
            else:
                dims.append(dim)
        return ir.Shape(dims)

    def _symbol(self) -> str:
        self._symbols += 1
        return f"_unknown{self._symbols}"


def remember_declared(value: ir.Value) -> None:
    """Keep what the file declared for a value before inference replaces it; the first call counts."""
    meta = value.meta
    if INFERRED not in meta:
        meta[INFERRED] = True
        if value.type is not None or value.shape is not None:
            meta[DECLARED] = (value.type, value.shape)


def _text(shape: ir.Shape) -> str:
    return "[" + ",".join(str(d) for d in shape.dims) + "]"


def _library_context(model: ir.Model):
    """The library's context with our notion of a constant. Imported here: it brings sympy, which is slow to load."""
    import onnx_shape_inference
    from onnx_shape_inference import ShapeInferenceContext

    registry = onnx_shape_inference.registry
    registry.collect()

    class _Library(ShapeInferenceContext):
        def __init__(self) -> None:
            super().__init__(model.opset_imports, policy="override")
            self.reserve_symbol_names(_symbol_names(model))
            self._versions = {("" if d == "ai.onnx" else d): v for d, v in model.opset_imports.items()}
            self._functions: dict[tuple[str, str], object] = {}
            self._local = {(d, n) for d, n, _ in model.functions}

        def function_for(self, node: ir.Node):
            key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
            if key not in self._functions:
                found = None if key in self._local else registry.get(*key, version=self._versions.get(key[0], 1))
                self._functions[key] = found
            return self._functions[key]

        def set_symbolic_value(self, value, data) -> None:
            if len(data) > _KNOWN_VALUE_LIMIT:
                return
            self._symbolic_values[value] = data
            rank = None if value.shape is None else value.shape.rank()
            if rank in (0, 1) and value.const_value is None and (rank == 1 or len(data) == 1) and all(isinstance(d, int) for d in data):
                # Other functions of the library read constants from here; serialization ignores it.
                value.const_value = ir.tensor(np.asarray(data if rank else data[0], (value.dtype or ir.DataType.INT64).numpy()))

        def get_symbolic_value(self, value):
            known = self._symbolic_values.get(value)
            if known is not None:
                return known
            tensor = constant_tensor(value)
            if tensor is None or tensor.size > _KNOWN_VALUE_LIMIT or len(tensor.shape) > 1 or not tensor.dtype.is_integer():
                return None
            return [int(x) for x in tensor.numpy().reshape(-1)]

        def propagated(self, value):
            return self._symbolic_values.get(value)

        def drop(self, value) -> None:
            self._symbolic_values.pop(value, None)

    return _Library()


def _symbol_names(model: ir.Model) -> Iterator[str]:
    for value in model.graph.inputs:
        if value.shape is not None:
            yield from (d.value for d in value.shape.dims if not isinstance(d, int) and d.value)
