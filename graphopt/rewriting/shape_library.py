"""The context in which the functions of `onnx_shape_inference` run, with our notion of what is constant."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from graphopt.rewriting.shapes import ShapeAnalysis


def _readable(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    """A dimension whose text can be read back: the parsers of expressions know no "ceiling"."""
    if isinstance(dim, int) or "ceiling" not in (dim.value or ""):
        return dim
    import sympy

    return ir.SymbolicDim(dim._expr.replace(sympy.ceiling, lambda x: -sympy.floor(-x)))


def library_context(model: ir.Model, analysis: ShapeAnalysis):
    """The library's context with our notion of a constant. Imported here: it brings sympy, which is slow to load."""
    import onnx_shape_inference
    from onnx_shape_inference import ShapeInferenceContext

    registry = onnx_shape_inference.registry
    registry.collect()

    class _Library(ShapeInferenceContext):
        def __init__(self) -> None:
            super().__init__(model.opset_imports, policy="override")
            self.reserve_symbol_names(symbol_names(model))
            self._versions = {("" if d == "ai.onnx" else d): v for d, v in model.opset_imports.items()}
            self._functions: dict[tuple[str, str], object] = {}
            self._local = {(d, n) for d, n, _ in model.functions}

        def function_for(self, node: ir.Node):
            return self.function_of("" if node.domain == "ai.onnx" else node.domain, node.op_type)

        def function_of(self, *key: str):
            if key not in self._functions:
                found = None if key in self._local else registry.get(*key, version=self._versions.get(key[0], 1))
                self._functions[key] = found
            return self._functions[key]

        def set_shape(self, value, shape) -> bool:
            if not shape.is_static() and any("ceiling" in str(d) for d in shape.dims):
                shape = ir.Shape([_readable(d) for d in shape.dims])
            value.shape = shape
            return True

        def set_dtype(self, value, dtype) -> bool:
            if value.dtype is not dtype:
                value.type = ir.TensorType(dtype)
            return True

        def set_symbolic_value(self, value, data) -> None:
            pass  # `shape_values` follows them

        def get_symbolic_value(self, value):
            found = analysis.elements(value)
            return None if found is None or any(e is None for e in found) else found

    return _Library()


def symbol_names(model: ir.Model) -> Iterator[str]:
    """The names of dimensions that graph inputs have."""
    for value in model.graph.inputs:
        if value.shape is not None:
            yield from (d.value for d in value.shape.dims if not isinstance(d, int) and d.value)


def one_type(node: ir.Node, index: int, version: int) -> ir.DataType | None:
    """The element type of output number `index` where the definition of the operator leaves no choice (of tensors)."""
    return _one_type(node.domain, node.op_type, index, version)


@functools.cache
def _one_type(domain: str, op_type: str, index: int, version: int) -> ir.DataType | None:
    import onnx

    try:
        outputs = onnx.defs.get_schema(op_type, version, "" if domain == "ai.onnx" else domain).outputs
    except onnx.defs.SchemaError:
        return None
    types = outputs[index].types if index < len(outputs) else ()
    name = next(iter(types)) if len(types) == 1 else ""
    return ir.DataType[name[7:-1].upper()] if name.startswith("tensor(") else None
