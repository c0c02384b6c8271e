"""Shape inference over the graph in memory, sound enough to rewrite by.

Operators that shapes hang on have rules of their own (`shape_rules`, `shape_values`); the others use the functions of
`onnx_shape_inference`. Initializers that a caller may override are not constants, loop-carried values may change shape
from one iteration to the next, two unlike symbolic dimensions do not broadcast to the first, and a shape that a file
declares for an inner value is a claim to compare with, not a fact: of an operator that nothing is known of, only the
declared type counts. One name for several dimensions of one input (as PaddleOCR's exporter writes) does not make them
equal. The bodies of functions are not inferred: their callers may differ.

What is assumed: equal names of dimensions of graph inputs mean equal sizes, and where a Reshape is asked to work a
dimension out (-1), the named dimensions of graph inputs are not 0.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.model import DECLARED, INFERRED
from graphopt.rewriting import shape_algebra, shape_values
from graphopt.rewriting.constants import constant_tensor
from graphopt.rewriting.shape_contrib import CONTRIB
from graphopt.rewriting.shape_library import library_context, one_type, symbol_names
from graphopt.rewriting.shape_rules import RULES
from graphopt.rewriting.shape_values import LIMIT, TYPES, Element

Dim: TypeAlias = int | str

_PLACEHOLDERS = ("", "?", "None", "unknown", "dynamic", "-1")
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_SAME_SHAPE = frozenset(("Imputer", "Normalizer", "Scaler"))
_WHOLE = frozenset((ir.DataType.INT64, ir.DataType.INT32))


class ShapeAnalysis:
    """Types, shapes and shape-determined values of a model, stored on its values and marked as inferred.

    Attributes:
        conflicts: what files declare against what is inferred, one line each, for the report.
    """

    def __init__(self, model: ir.Model) -> None:
        self.conflicts: list[str] = []
        self._library = library_context(model, self)
        self._versions = {("" if d == "ai.onnx" else d): v for d, v in model.opset_imports.items()}
        self._elements: dict[ir.Value, list[Element]] = {}
        self._named: set[str] = set()
        self._symbols = 0
        self._taken = set(symbol_names(model))
        self._bodies: set[ir.Graph] = set()
        self._infer_model(model)

    # --- questions ----------------------------------------------------------------------------------------------

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The shape of a value: an int or a symbolic expression a dimension; None where the rank is unknown."""
        if value is None or value.shape is None:
            return None
        return tuple(d if isinstance(d, int) else (d.value or self._symbol()) for d in value.shape.dims)

    def known_value(self, value: ir.Value | None) -> np.ndarray | None:
        """The int64 elements (rank 0 or 1) of an integer or boolean value that shapes determine, or None."""
        found = self._elements.get(value) if value is not None else None
        if found is None or value.dtype not in TYPES or value.shape is None or any(not isinstance(d, int) for d in found):
            return None
        return np.asarray(found if value.shape.rank() else found[0], np.int64)

    def partial_value(self, value: ir.Value | None) -> list[Dim | None] | None:
        """The elements of an integer or boolean vector or scalar: a number, an expression over sizes, or None.

        None for the whole where nothing is known. Symbols stand for sizes: what is made of them by sums and products
        alone is not negative.
        """
        found = self.elements(value)
        return None if found is None else [d if d is None or isinstance(d, int) else d.value for d in found]

    # --- what rules ask -----------------------------------------------------------------------------------------

    def elements(self, value: ir.Value | None) -> list[Element] | None:
        """As `partial_value`, with expressions as symbolic dimensions."""
        if value is None:
            return None
        known = self._elements.get(value)
        if known is not None:
            return known
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype not in TYPES or tensor.size > LIMIT or len(tensor.shape) > 1:
            return None
        return [int(x) for x in tensor.numpy().reshape(-1)]

    def sizes(self, elements: Sequence[Element]) -> list[int | ir.SymbolicDim]:
        """Elements as dimensions: a fresh symbol for each that is not known, or that might be negative."""
        return [d if d is not None and self.nonnegative(d) else self.fresh() for d in elements]

    def fresh(self) -> ir.SymbolicDim:
        """A symbol that stands for a size of its own."""
        return ir.SymbolicDim(self._symbol())

    def nonnegative(self, dim: int | ir.SymbolicDim) -> bool:
        """Whether an expression over sizes is never below 0."""
        return dim >= 0 if isinstance(dim, int) else shape_algebra.nonnegative(self._expression(dim))

    def positive(self, dim: int | ir.SymbolicDim) -> bool:
        """Whether an expression is above 0 where the named dimensions of graph inputs are."""
        return dim > 0 if isinstance(dim, int) else shape_algebra.positive(self._expression(dim), self._named)

    def divides(self, dim: ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
        """Whether `other` is a multiple of `dim`."""
        if isinstance(other, int):
            return other == 0
        import sympy

        ratio = sympy.cancel(self._expression(other) / self._expression(dim))
        return ratio.is_polynomial() and sympy.denom(ratio) == 1

    def at_least_zero(self, dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        """The larger of 0 and an expression."""
        if isinstance(dim, int):
            return max(0, dim)
        expression = self._expression(dim)
        if shape_algebra.nonnegative(expression):
            return dim
        import sympy

        larger = sympy.Max(0, expression)
        return ir.SymbolicDim(larger) if larger.has(sympy.Max) else self.fresh()  # sympy takes a symbol to be 1 or more

    def smaller(self, number: int, dim: ir.SymbolicDim) -> ir.SymbolicDim:
        """The smaller of a number and an expression."""
        import sympy

        result = sympy.Min(number, self._expression(dim))
        return ir.SymbolicDim(result) if result.has(sympy.Min) else self.fresh()

    def cut_from(self, dim: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
        """Whether `dim` is the smaller of `other` and a number above 1: where the two broadcast, they are equal."""
        if isinstance(dim, int) or isinstance(other, int) or not (dim.value or "").startswith("Min("):
            return False
        expression = self._expression(dim)
        if expression.func.__name__ != "Min":
            return False
        rest = [a for a in expression.args if a != self._expression(other)]
        return len(rest) < len(expression.args) and all(a.is_Integer and a > 1 for a in rest)

    def quotient(self, above: int | ir.SymbolicDim, below: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        """The quotient of two expressions, rounded down."""
        import sympy

        result = sympy.floor(sympy.cancel(self._expression(above) / self._expression(below)))
        return int(result) if result.is_Integer else ir.SymbolicDim(result)

    def version(self, node: ir.Node) -> int:
        """The opset version in force for the domain of a node."""
        return self._versions.get("" if node.domain == "ai.onnx" else node.domain, 1)

    def by_library(self, node: ir.Node, like: str | None = None) -> None:
        """Let the library's function infer the outputs of a node, or that of the ONNX operator `like`; nothing where it has none."""
        function = self._library.function_for(node) if like is None else self._library.function_of("", like)
        if function is not None:
            function(self._library, node)

    # --- upkeep -------------------------------------------------------------------------------------------------

    def infer(self, node: ir.Node) -> None:
        """Infer the outputs of one node that was made or whose inputs changed."""
        if node.graph in self._bodies:
            return
        hidden = [(v, v.const_value) for v in node.inputs if v is not None and v.is_initializer() and v.is_graph_input()]
        for value, _ in hidden:
            value.const_value = None
        self._infer_node(node, report=False)
        for value, tensor in hidden:
            value.const_value = tensor

    def state(self, value: ir.Value) -> tuple[object, ...]:
        """All that is held of a value, to be given to `restore` after a trial."""
        return value.shape, value.type, value.const_value, self._elements.get(value)

    def restore(self, value: ir.Value, state: tuple[object, ...]) -> None:
        """Let a value be known for what it was when `state` was asked."""
        value.shape, value.type, value.const_value, elements = state  # type: ignore[assignment]
        self._elements.pop(value, None)
        if elements is not None:
            self._elements[value] = elements  # type: ignore[assignment]

    def forget(self, node: ir.Node) -> None:
        """Drop what is held for the outputs of a node that was removed."""
        for value in node.outputs:
            self._elements.pop(value, None)

    # --- inference ----------------------------------------------------------------------------------------------

    def _infer_model(self, model: ir.Model) -> None:
        for value in model.graph.inputs:
            if value.is_initializer():
                continue
            remember_declared(value)
            if value.shape is not None:
                value.shape = self._independent(value.shape)
                self._named.update(d.value for d in value.shape.dims if not isinstance(d, int))
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
        for function in model.functions.values():
            self._leave_out(function.graph)

    def _leave_out(self, body: ir.Graph) -> None:
        """Keep nothing but what the constants of a function say: its callers may differ in types and shapes."""
        pending = [body]
        while pending:
            graph = pending.pop()
            self._bodies.add(graph)
            for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
                remember_declared(value)
                value.shape = value.type = None
            for node in graph:
                for attribute in node.attributes.data.values():
                    if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
                        pending.append(attribute.as_graph())

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
            for attribute in node.attributes.data.values():  # the dict itself: the view over it is slow
                if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
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
        constant = node.op_type == "Constant"
        for value in node.outputs:
            if report:
                remember_declared(value)
            else:
                value.meta[INFERRED] = True
            value.shape = None
            if not constant and value.const_value is not None:
                value.const_value = None
            self._elements.pop(value, None)
        for attribute in node.attributes.data.values():
            if attribute.is_ref():
                return
        try:
            self._apply(node)
        except Exception:
            for value in node.outputs:
                value.shape = None  # an invalid node, or one that the library does not handle
        if not constant and node.domain in _DOMAINS:
            self._follow(node)
        if report:
            for value in node.outputs:
                if value.shape is not None:
                    self._compare(node, value)

    def _apply(self, node: ir.Node) -> None:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if node.domain == "com.microsoft":
            rule = CONTRIB.get(node.op_type)
        if rule is not None:
            rule(self, node)
        elif node.op_type == "If":
            self._infer_if(node)
        elif node.domain in _DOMAINS:
            self.by_library(node)
            for i, value in enumerate(node.outputs):
                if value.type is None and (dtype := one_type(node, i, self.version(node))) is not None:
                    value.type = ir.TensorType(dtype)
            if node.domain == "ai.onnx.ml" and node.op_type in _SAME_SHAPE:
                node.outputs[0].shape = node.inputs[0].shape
            if node.op_type in ("Loop", "Scan"):
                for value in node.outputs:
                    value.shape = None

    def _infer_if(self, node: ir.Node) -> None:
        branches = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        self.by_library(node)
        condition = self.elements(node.inputs[0])
        if condition is not None and isinstance(condition[0], int):
            branches = [node.attributes["then_branch" if condition[0] else "else_branch"].as_graph()]
            for value, result in zip(node.outputs, branches[0].outputs):
                value.shape = result.shape
        for i, value in enumerate(node.outputs):
            if any(i >= len(b.outputs) or b.outputs[i].shape is None for b in branches):
                value.shape = None

    def _follow(self, node: ir.Node) -> None:
        """Note the elements of the outputs where shapes determine them."""
        if node.op_type == "Split":
            parts = [None] * len(node.outputs)
            if node.outputs[0].dtype in TYPES:
                parts = shape_values.split_elements(self, node) or parts
        elif node.op_type in shape_values.RULES:
            try:
                parts = [shape_values.elements_of(self, node)]
            except Exception:
                return
        else:
            return
        for value, found in zip(node.outputs, parts):
            if found is None:
                continue
            self._elements[value] = found
            if value.dtype in _WHOLE and value.shape is not None and all(isinstance(d, int) for d in found):
                # The functions of the library read constants from here; serialization ignores it.
                value.const_value = ir.Tensor(np.asarray(found if value.shape.rank() else found[0], value.dtype.numpy()))

    def _expression(self, dim: int | ir.SymbolicDim):
        from onnx_shape_inference import _symbolic_shapes

        return _symbolic_shapes.dim_to_expr(dim) if isinstance(dim, int) or dim.value is None else dim._expr

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
        while True:
            self._symbols += 1
            name = f"_unknown{self._symbols}"
            if name not in self._taken:
                return name


def remember_declared(value: ir.Value) -> None:
    """Keep what the file declared for a value before inference replaces it; the first call counts."""
    meta = value.meta
    if INFERRED not in meta:
        meta[INFERRED] = True
        if value.type is not None or value.shape is not None:
            meta[DECLARED] = (value.type, value.shape)


def _text(shape: ir.Shape) -> str:
    return "[" + ",".join(str(d) for d in shape.dims) + "]"
