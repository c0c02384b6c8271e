"""Initializers of equal content become one.

Weights are read as little as telling them apart takes: not at all where no other has the same type and shape, a few
pages of each where these differ, and whole only where they agree; then piece by piece, without mapping them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Pass, is_sparse, is_used

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_SAMPLE = 4096  # bytes at the start, the middle and the end
_SMALL = 3 * _SAMPLE


@dataclass(frozen=True)
class MergeEqualInitializers(Pass):
    """Keep one of initializers that are equal in type, shape and every byte."""

    name = "merge-equal-initializers"
    kinds = frozenset({"onnx", "torch"})

    def run_aten(self, context: AtenContext) -> None:
        from ..aten import merge_equal_initializers

        merge_equal_initializers.run(context)

    def run(self, context: Context) -> None:
        groups: dict[Hashable, list[ir.Value]] = {}
        for graph in context.index.scopes:
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or value.is_graph_input() or not is_used(value) or is_sparse(tensor):
                    continue
                groups.setdefault((tensor.dtype, tensor.shape.numpy()), []).append(value)
        for (dtype, _), values in groups.items():
            for equal in _equal(values, dtype):
                _merge(equal, context)


def _equal(values: list[ir.Value], dtype: ir.DataType) -> Iterable[list[ir.Value]]:
    """The lists of equal ones among values of one type and shape, in order."""
    if len(values) < 2:
        return []
    if dtype == ir.DataType.STRING:
        return _split(values, lambda t: tuple(t.string_data()))
    if values[0].const_value.nbytes <= _SMALL:
        return _split(values, lambda tensor: _looked_at(tensor, lambda t: t.tobytes()))
    # Elements of less than a byte would be unpacked, whole, to take a sample.
    sampled = [values] if dtype.bitwidth < 8 else _split(values, lambda tensor: _looked_at(tensor, _sample))
    return [equal for candidates in sampled for equal in _split(candidates, _digest)]


def _split(values: list[ir.Value], key: Callable[[ir.TensorProtocol], Hashable]) -> list[list[ir.Value]]:
    found: dict[Hashable, list[ir.Value]] = {}
    for value in values:
        found.setdefault(key(value.const_value), []).append(value)
    return [equal for equal in found.values() if len(equal) > 1]


def _looked_at(tensor: ir.TensorProtocol, look: Callable[[ir.TensorProtocol], bytes]) -> bytes:
    """What `look` sees; an external tensor is unmapped again, for each one mapped holds a file open."""
    unmapped = type(tensor) is ir.ExternalTensor and tensor.raw is None
    try:
        return look(tensor)
    finally:
        if unmapped:
            tensor.release()


def sample_of(array: np.ndarray) -> bytes:
    """Bytes at the start, in the middle and at the end of an array without gaps."""
    array = array.reshape(-1).view(np.uint8)
    middle = array.size // 2
    return b"".join(part.tobytes() for part in (array[:_SAMPLE], array[middle:middle + _SAMPLE], array[-_SAMPLE:]))


def digest_of(array: np.ndarray) -> bytes:
    """A digest of all bytes of an array."""
    hasher = _Hasher()
    hasher.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.digest()


def _sample(tensor: ir.TensorProtocol) -> bytes:
    return sample_of(tensor.numpy())


class _Hasher:
    """A file to write to that keeps only the digest."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)

    def write(self, data: bytes | memoryview) -> int:
        self._hash.update(data)
        return len(data)

    def digest(self) -> bytes:
        return self._hash.digest()


def _digest(tensor: ir.TensorProtocol) -> bytes:
    if type(tensor) is ir.Tensor and tensor.dtype.bitwidth >= 8:
        return digest_of(tensor.numpy())
    hasher = _Hasher()
    tensor.tofile(hasher)  # from a file: read in pieces, not mapped
    return hasher.digest()


def _merge(equal: list[ir.Value], context: Context) -> None:
    scopes = context.index.scopes
    kept: list[ir.Value] = []
    for value in equal:
        first = next((k for k in kept if _sees(value.graph, k.graph, scopes)), None)
        if first is None:
            kept.append(value)
        elif value.is_graph_output():
            context.log.refuse(value.name or "?", f"it names a graph output, so {first.name!r} cannot stand for it")
        elif context.log.permit(value):
            graph = value.graph
            value.replace_all_uses_with(first)
            graph.initializers.pop(value.name)


def _sees(graph: ir.Graph, outer: ir.Graph, scopes) -> bool:
    """Whether the nodes of `graph` see the values of `outer`."""
    while graph is not outer:
        owner = scopes[graph].owner
        if owner is None or owner.graph is None:
            return False
        graph = owner.graph
    return True
