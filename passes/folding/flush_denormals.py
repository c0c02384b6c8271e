"""Denormal weights: arithmetic on them is many times slower than on any other number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Effect, Pass, constant_tensor, is_sparse, option, use_count

_TYPES = {ir.DataType.FLOAT: np.dtype("<f4"), ir.DataType.DOUBLE: np.dtype("<f8")}
_CHUNK = 1 << 18  # elements looked at in one go: they stay in the cache
_LAZY_BYTES = 1 << 20  # from here on a copy is made when it is needed, and not kept
_CLEAN = "graphopt.no-denormals"  # in the meta of a tensor: it was looked through
_CONSUMERS = 256  # looked at behind one weight
_DOMAINS = ("", "ai.onnx", "com.microsoft")

# Inputs by which an operator is linear, summing over many elements: what a denormal adds is lost in the sum.
_SUMMED = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
    "DeformConv": (1,), "Einsum": (0, 1, 2), "FusedMatMul": (0, 1), "FusedConv": (1,), "FusedGemm": (0, 1), "Attention": (1,),
}  # fmt: skip
# Inputs by which an operator is linear element by element: safe for a tensor whose other elements are ordinary numbers.
_SCALED = {
    "Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "LSTM": (3, 5, 6, 7), "GRU": (3, 5), "RNN": (3, 5), "Mul": (0, 1),
    "Add": (0, 1), "Sub": (0, 1), "BatchNormalization": (1, 2, 3), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4), "PRelu": (1,), "Gather": (0,),
}  # fmt: skip
# Operators that only move elements.
_MOVED = {
    "Identity": (0,), "Transpose": (0,), "Reshape": (0,), "Flatten": (0,), "Unsqueeze": (0,), "Squeeze": (0,), "Slice": (0,),
    "Split": (0,), "Expand": (0,), "Tile": (0,), "Concat": range(1 << 30),
}  # fmt: skip


@dataclass(frozen=True)
class FlushDenormals(Pass):
    """Set weights below the smallest normal number of float32 and float64 to zero.

    float16 and bfloat16 are left alone: such values are ordinary there, and no hardware slows down on them. So is a
    constant that something else than a linear operator consumes: the logarithm of a sum with 1e-40 needs the 1e-40.
    Weights are streamed through; those without denormals are neither kept in memory nor copied.
    """

    name = "flush-denormals"
    effect = Effect.ROUNDING

    min_elements: int = option(2, "smallest number of elements of a weight that is looked at", minimum=1)

    def run(self, context: Context) -> None:
        for graph in context.index.scopes:
            for value in list(graph.initializers.values()):
                tensor = value.const_value
                found = self._found(tensor)
                if found is None:
                    continue
                if value.is_graph_input():
                    context.log.refuse(value.name or "?", "it has denormals, but a caller may override it")
                elif (reason := _objection(value, found)) is not None:
                    context.log.refuse(value.name or "?", reason)
                elif context.log.permit(value):
                    value.const_value = found.flushed(value.name)
        for node in context.index.of_types(("Constant",)):
            attribute = node.attributes.get("value")
            if attribute is None or attribute.is_ref() or constant_tensor(node.outputs[0]) is None:
                continue
            found = self._found(attribute.as_tensor())
            if found is None:
                continue
            if (reason := _objection(node.outputs[0], found)) is not None:
                context.log.refuse(node, reason)
            elif context.log.permit(node):
                node.attributes["value"] = ir.AttrTensor("value", found.flushed(attribute.as_tensor().name))

    def _found(self, tensor: ir.TensorProtocol | None) -> _Denormals | None:
        """What there is to flush in a tensor, or None."""
        if tensor is None or tensor.dtype not in _TYPES or is_sparse(tensor) or tensor.size < self.min_elements:
            return None
        if tensor.meta.get(_CLEAN):
            return None
        found = _Denormals.of(tensor)
        if not found.count:
            tensor.meta[_CLEAN] = True  # so that a later round does not read gigabytes again
            return None
        return found


@dataclass(frozen=True)
class _Denormals:
    """What was found in a tensor: the number of denormals, and whether any other element is not zero."""

    tensor: ir.TensorProtocol
    count: int
    ordinary: bool

    @staticmethod
    def of(tensor: ir.TensorProtocol) -> _Denormals:
        count, ordinary = 0, False

        def look(part: np.ndarray) -> None:
            nonlocal count, ordinary
            few, normal = _look(part)
            count, ordinary = count + few, ordinary or normal

        _stream(tensor, look)
        return _Denormals(tensor, count, ordinary)

    def flushed(self, name: str | None) -> ir.TensorProtocol:
        """The tensor without its denormals; a large one is made anew whenever it is asked for."""
        source = self.tensor
        if source.nbytes >= _LAZY_BYTES:
            made: ir.TensorProtocol = FlushedTensor(source, name)
        else:
            made = ir.Tensor(_flush(np.array(source.numpy())), name=name)
        made.doc_string = source.doc_string
        made.metadata_props.update(source.metadata_props)
        made.meta[_CLEAN] = True
        return made


class FlushedTensor(ir.LazyTensor):
    """A tensor that reads as another one with its denormals set to zero, without a copy of it being kept."""

    def __init__(self, source: ir.TensorProtocol, name: str | None) -> None:
        super().__init__(self._flushed, source.dtype, ir.Shape(source.shape.numpy(), frozen=True), name=name)
        self.source = source

    def _flushed(self) -> ir.Tensor:
        array = np.empty(self.shape.numpy(), _TYPES[self.dtype])
        flat, start = array.reshape(-1), 0

        def copy(part: np.ndarray) -> None:
            nonlocal start
            flat[start : start + part.size] = part
            _flush(flat[start : start + part.size])
            start += part.size

        _stream(self.source, copy)
        return ir.Tensor(array, name=self.name)

    def tofile(self, file: Any) -> None:
        """Write the bytes, a chunk at a time."""
        _stream(self.source, lambda part: file.write(_flush(np.array(part)).tobytes()))


def _stream(tensor: ir.TensorProtocol, use: Callable[[np.ndarray], None]) -> None:
    """Hand the elements to `use`, flat, a piece at a time.

    What lies in a file is read, not mapped: mapped pages would count as memory for as long as the model lives.
    """
    in_file = isinstance(tensor, ir.LazyTensor) or (isinstance(tensor, ir.ExternalTensor) and tensor.raw is None)
    if in_file:
        tensor.tofile(_Pieces(_TYPES[tensor.dtype], use))
        return
    flat = tensor.numpy().reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        use(flat[start : start + _CHUNK])


class _Pieces:
    """A file to write to that hands on whole elements."""

    def __init__(self, dtype: np.dtype, use: Callable[[np.ndarray], None]) -> None:
        self._dtype, self._use, self._rest = dtype, use, b""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size, item = len(view), self._dtype.itemsize
        if self._rest:
            need = min(-len(self._rest) % item, size)
            self._rest += view[:need]
            view = view[need:]
            if len(self._rest) % item:
                return size
            self._use(np.frombuffer(self._rest, self._dtype))
            self._rest = b""
        whole = len(view) // item * item
        step = _CHUNK * item
        for start in range(0, whole, step):
            self._use(np.frombuffer(view[start : min(start + step, whole)], self._dtype))
        self._rest = bytes(view[whole:])
        return size


def _look(part: np.ndarray) -> tuple[int, bool]:
    """The number of denormals in a flat array, and whether it has elements that are neither zero nor denormal."""
    kind = np.finfo(part.dtype)
    bits = part.view(f"<u{part.dtype.itemsize}") & ((1 << (kind.bits - 1)) - 1)
    small = bits < (1 << kind.nmant)  # the exponent is zero
    few = int(np.count_nonzero(small))
    return (int(np.count_nonzero(bits[small])) if few else 0), few < part.size


def _flush(array: np.ndarray) -> np.ndarray:
    array[np.abs(array) < np.finfo(array.dtype).tiny] = 0
    return array


def _objection(value: ir.Value, found: _Denormals) -> str | None:
    """Why the denormals of a constant may matter, or None: everything that consumes it is linear in it."""
    pending, seen = [value], 0
    while pending:
        current = pending.pop()
        if current.is_graph_output():
            return "it has denormals, but is also a graph output"
        seen += use_count(current)
        if seen > _CONSUMERS:
            return "it has denormals, but too many consumers to look at"
        for usage in current.uses():
            op_type = usage.node.op_type if usage.node.domain in _DOMAINS else ""
            if usage.idx in _MOVED.get(op_type, ()):
                pending.extend(usage.node.outputs)
            elif usage.idx not in _SUMMED.get(op_type, ()) and not (found.ordinary and usage.idx in _SCALED.get(op_type, ())):
                return f"it has denormals, but {usage.node.op_type} may depend on how small they are"
    return None
