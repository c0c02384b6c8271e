"""Tensors that :mod:`onnx_ir` does not have: sparse ones, and large inline ones that stay in their file."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

#: How much is copied at a time where the kernel cannot copy from file to file by itself.
COPY_CHUNK = 4 << 20


class SparseTensor(ir.LazyTensor):
    """A SparseTensorProto (ONNX IR specification, "Sparse tensors") that reads as the dense tensor it stands for.

    Passes see an ordinary constant. One that no pass replaced is written back sparse, with the parts it came with.
    """

    __slots__ = ("indices", "values")

    def __init__(self, name: str | None, values: ir.TensorProtocol, indices: ir.TensorProtocol, dims: Sequence[int]):
        # Made dense anew at each call: keeping the result would cost what sparsity saved.
        super().__init__(self._dense, values.dtype, ir.Shape(dims, frozen=True), name=name)
        self.values = values
        self.indices = indices

    def _dense(self) -> ir.Tensor:
        values, indices = self.values.numpy(), self.indices.numpy().astype(np.int64)
        dense = np.zeros(self.shape.numpy(), values.dtype)
        if indices.ndim == 2:
            dense[tuple(indices.T)] = values
        else:  # positions in the flattened tensor
            dense.reshape(-1)[indices] = values
        return ir.Tensor(dense, dtype=self.dtype, name=self.name)


class Source:
    """A file that tensors are read from on demand. It stays open, so renaming another file over it changes nothing."""

    def __init__(self, path: os.PathLike | str) -> None:
        self.file = open(path, "rb")  # noqa: SIM115 - lives as long as the tensors that read from it
        self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)


class MappedTensor(ir.LazyTensor):
    """A tensor whose bytes lie inside the .onnx file itself, mapped when first looked at.

    Reading a large model this way costs neither the protobuf's copy of the weights nor the read of those that no
    pass looks at.
    """

    __slots__ = ("_length", "_offset", "_source")

    def __init__(self, name: str, dtype: ir.DataType, dims: Sequence[int], source: Source, offset: int, length: int):
        super().__init__(self._map, dtype, ir.Shape(dims, frozen=True), name=name)
        self._source, self._offset, self._length = source, offset, length

    def _map(self) -> ir.Tensor:
        dtype = np.dtype(self.dtype.numpy()).newbyteorder("<")
        array = np.frombuffer(self._source.map, dtype, self._length // dtype.itemsize, self._offset)
        # Nothing in protobuf aligns the bytes. numpy's own types do without, ml_dtypes' kernels need not.
        if not array.flags.aligned and dtype.kind not in "biufc":
            array = array.copy()
        return ir.Tensor(array.reshape(self.shape.numpy()), dtype=self.dtype, name=self.name)

    def tobytes(self) -> bytes:
        return os.pread(self._source.file.fileno(), self._length, self._offset)

    def tofile(self, file: Any) -> None:
        """Copies the bytes to ``file`` without mapping them: pages that were only copied do not count as memory."""
        copy_range(self._source.file.fileno(), self._offset, self._length, file)


def copy_range(source: int, offset: int, length: int, file: Any) -> None:
    """Copies ``length`` bytes at ``offset`` of the descriptor ``source`` to the end of what ``file`` has written.

    Raises:
        OSError: reading or writing failed, or the source is shorter than that.
    """
    while length:
        chunk = os.pread(source, min(length, COPY_CHUNK), offset)
        if not chunk:
            raise OSError("the file that the weights are read from was cut short")
        file.write(chunk)
        offset += len(chunk)
        length -= len(chunk)


_KINDS = (ir.TensorProtoTensor, MappedTensor, ir.ExternalTensor, ir.StringTensor, SparseTensor)
_kinds: dict[type, type | None] = {}


def kind_of(tensor: ir.TensorProtocol) -> type | None:
    """Which of the classes that reading and writing tell apart a tensor is of; None for any other.

    isinstance() on onnx_ir's tensors goes through a protocol's Python code; by type, the answer is looked up once.
    """
    cls = type(tensor)
    if cls not in _kinds:
        _kinds[cls] = next((kind for kind in _KINDS if issubclass(cls, kind)), None)
    return _kinds[cls]


def nbytes_of(tensor: ir.TensorProtocol) -> int:
    """The bytes of a tensor, of a string tensor none. Spares a tensor in a protobuf the making of a Shape."""
    kind = kind_of(tensor)
    if kind is ir.StringTensor:
        return 0
    if kind is ir.TensorProtoTensor:
        proto = tensor.raw
        bits = _bits.get(proto.data_type)
        if bits is None:
            bits = _bits[proto.data_type] = tensor.dtype.bitwidth
        return -(-math.prod(proto.dims) * bits // 8)
    return tensor.nbytes


_bits: dict[int, int] = {}
