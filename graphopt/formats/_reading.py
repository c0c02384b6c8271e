"""From the bytes of an ONNX file to the graph in memory, with every fault of the file told in one line."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import google.protobuf.message
import onnx
import onnx_ir as ir
from onnx import TensorProto

from graphopt.errors import InputError
from graphopt.formats import _adapt, _wire
from graphopt.formats._tensors import MappedTensor, Source, SparseTensor, kind_of
from graphopt.model import file_stamp, iter_graphs

#: From this file size on, inline weights of at least `_LEAVE` bytes stay in the file until a pass looks at them.
_LARGE_FILE, _LEAVE = 64 << 20, 1 << 16

_MAGIC = (
    (b"\x89PNG", "a PNG picture"), (b"\xff\xd8\xff", "a JPEG picture"), (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive (torch files are, and some downloads)"), (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"), (b"GGUF", "a GGUF file"), (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
)  # fmt: skip


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Suspends the cyclic garbage collector: building a graph makes objects by the million, none of them garbage,
    and the collector walking them over and over takes as long as building them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_proto(path: Path) -> onnx.ModelProto:
    """The ModelProto in a file, large weights left behind (see :mod:`._wire`).

    Raises:
        InputError: no such file, not a file, no permission, empty, cut short, or not an ONNX model.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(64)
            if not head:
                raise InputError(f"{path}: the file is empty")
            if size >= _LARGE_FILE:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    content = _wire.without_large_weights(data, _LEAVE)
            else:
                content = head + file.read()
        proto = onnx.ModelProto.FromString(content)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a model file") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (google.protobuf.message.DecodeError, _wire.WireError):
        raise InputError(f"{path}: {_not_onnx(head)}") from None
    # protobuf takes many byte strings for a message with nothing but unknown fields, and a file that was cut between
    # two fields for a whole one. ir_version, graph and opset_import are required (IR specification, "Models").
    if not proto.HasField("graph"):
        raise InputError(f"{path}: {_not_onnx(head)}")
    if not proto.ir_version:
        raise InputError(f"{path}: not an ONNX model, or a damaged one: it has no IR version")
    if not proto.opset_import and proto.ir_version >= 3:
        raise InputError(f"{path}: cut short or damaged: the model imports no operator set")
    if not proto.graph.output:
        raise InputError(f"{path}: the graph has no outputs, so it computes nothing")
    return proto


def _not_onnx(head: bytes) -> str:
    for magic, words in _MAGIC:
        if head.startswith(magic):
            return f"not an ONNX model but {words}"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "not an ONNX model but text"
    return "not an ONNX model, or one that was cut short"


def to_graph(proto: onnx.ModelProto, path: Path, *, thorough: bool = False) -> ir.Model:
    """The graph of a ModelProto. Its external tensors are lazy; those left in the file come back as such.

    What onnx_ir drops silently is looked for in the main graph only, unless ``thorough``: it is rare, and looking
    into every node for graphs that might hold some is not for nothing.

    Raises:
        InputError: onnx_ir cannot make a graph of it, or a tensor does not hold what its type and shape ask for.
    """
    folder = os.path.dirname(os.path.abspath(path))
    # onnx_ir logs what it tolerates; what of that matters is checked, and told, by `_structure`.
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        kept = _adapt.stand_in(proto) if thorough or _adapt.needed(proto) else None
        try:
            graph = ir.serde.deserialize_model(proto)
        except ir.serde.SerdeError:
            if kept is not None:
                raise
            kept = _adapt.stand_in(proto)
            graph = ir.serde.deserialize_model(proto)
        if kept is not None and kept.things:
            _adapt.restore(graph, kept, lambda tensor: ir.serde.deserialize_tensor(tensor, folder))
    except (ir.serde.SerdeError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: {_root(error)}") from None
    finally:
        log.setLevel(level)
    return graph


def _root(error: BaseException) -> str:
    """The innermost cause in one line: onnx_ir wraps an error once for every level of nesting."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, KeyError):
        return f"'{error.args[0]}' is used but never defined"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


def tensors_of(graphs: Iterable[ir.Graph]) -> Iterator[tuple[ir.TensorProtocol, ir.Value | ir.Attr]]:
    """Every tensor that graphs hold, initializers and attributes, with its holder, in a fixed order.

    Of a sparse tensor, the tensors of its values and its indices.
    """
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value, value
        for node in graph:
            for attr in node.attributes.values():
                kind = attr.type
                if kind is ir.AttributeType.TENSOR and not attr.is_ref():
                    yield attr.value, attr
                elif kind is ir.AttributeType.TENSORS and not attr.is_ref():
                    for tensor in attr.value:
                        yield tensor, attr


def settle_tensors(graph: ir.Model, path: Path, stamps: dict[Path, tuple[int, int]]) -> bool:
    """Checks the size of every tensor without reading it and ties lazy ones to their file; True if any is external.

    Raises:
        InputError: a tensor holds more or less than its type and shape say, or an external file is missing, too
            short, outside the model's folder, or hard-linked (which onnx_ir refuses to read, as an attack).
    """
    folder = os.path.dirname(os.path.abspath(path))
    sizes: dict[str, int] = {}
    source: Source | None = None
    external = False
    for tensor, holder in list(tensors_of(iter_graphs(graph))):
        parts = (tensor.values, tensor.indices) if kind_of(tensor) is SparseTensor else (tensor,)
        for part in parts:
            if kind_of(part) is ir.ExternalTensor:
                if part.location == _wire.IN_FILE:
                    source = source or Source(path)
                    _check_length(path, part, part.length)
                    dims = part.shape.numpy()
                    mapped = MappedTensor(part.name, part.dtype, dims, source, part.offset, part.length)
                    mapped.doc_string = part.doc_string
                    if part.metadata_props:
                        mapped.metadata_props.update(part.metadata_props)
                    holder.const_value = mapped
                else:
                    external = True
                    part.base_dir = folder
                    _check_external(path, part, sizes, stamps)
            else:
                _check_inline(path, part)
    return external


def _check_length(path: Path, tensor: ir.TensorProtocol, length: int) -> None:
    if any(dim < 0 for dim in tensor.shape.numpy()):
        raise InputError(f"{path}: tensor '{tensor.name}' has a negative dimension: {list(tensor.shape)}")
    if length != tensor.nbytes:
        raise InputError(
            f"{path}: tensor '{tensor.name}' ({tensor.dtype.name} {list(tensor.shape)}) needs {tensor.nbytes} bytes, "
            f"the file gives {length}"
        )


def _check_external(path: Path, tensor: ir.ExternalTensor, sizes: dict[str, int], stamps: dict) -> None:
    where = f"{path}: tensor '{tensor.name}'"
    location = os.fspath(tensor.location)
    if not location:
        raise InputError(f"{where} is external but names no file")
    if location not in sizes:
        root, target = os.path.realpath(tensor.base_dir), os.path.realpath(tensor.path)
        # IR specification, "External Tensor Data": relative to the model's folder. onnx_ir refuses the rest on reading.
        if os.path.isabs(location) or not target.startswith(root.rstrip(os.sep) + os.sep):
            raise InputError(f"{where} lies in '{location}', outside the model's folder, which is not allowed")
        try:
            status = os.stat(target)
            if not os.path.isfile(target):
                raise InputError(f"{where} lies in '{location}', which is not a file")
            if not os.access(target, os.R_OK):
                raise InputError(f"{where} lies in '{location}', which cannot be read: no permission")
        except FileNotFoundError:
            raise InputError(f"{where} lies in '{location}', which does not exist") from None
        except OSError as error:
            raise InputError(f"{where} lies in '{location}', which cannot be read: {error.strerror}") from None
        if status.st_nlink > 1:
            raise InputError(
                f"{where} lies in '{location}', which has {status.st_nlink} hard links; onnx_ir does not read "
                "such a file (it could be another file in disguise): make a copy of it"
            )
        sizes[location] = status.st_size
        stamps[Path(tensor.path)] = file_stamp(target)
    offset = tensor.offset or 0
    _check_length(path, tensor, tensor.nbytes if tensor.length is None else tensor.length)
    if offset < 0 or offset + tensor.nbytes > sizes[location]:
        raise InputError(f"{where} needs bytes {offset} to {offset + tensor.nbytes} of '{location}', which has only {sizes[location]}")


#: The repeated field that holds a tensor's elements where raw_data does not, and how many entries an element takes.
_TYPED = {
    TensorProto.FLOAT: ("float_data", 1), TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1), TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1), TensorProto.UINT64: ("uint64_data", 1), TensorProto.UINT32: ("uint64_data", 1),
}  # fmt: skip


def _check_inline(path: Path, tensor: ir.TensorProtocol) -> None:
    if kind_of(tensor) is ir.StringTensor:
        if len(tensor.string_data()) != tensor.size:
            raise InputError(f"{path}: tensor '{tensor.name}' {list(tensor.shape)} holds {len(tensor.string_data())} strings")
        return
    if kind_of(tensor) is not ir.TensorProtoTensor:
        return
    proto = tensor.raw
    if proto.HasField("raw_data"):
        size = math.prod(proto.dims)
        length = len(proto.raw_data)
        if proto.data_type == TensorProto.FLOAT and length == 4 * size and size >= 0:
            return  # most tensors by far: spared the detour over onnx_ir's types
        try:
            _check_length(path, tensor, length)
        except ValueError:
            raise InputError(f"{path}: tensor '{proto.name}' has an unknown data type: {proto.data_type}") from None
        return
    name, per_element = _TYPED.get(proto.data_type, ("int32_data", 1))
    given, size = len(getattr(proto, name)), math.prod(proto.dims) * per_element
    bits = tensor.dtype.bitwidth if name == "int32_data" and tensor.dtype != ir.DataType.UNDEFINED else 8
    # Types of less than a byte are packed, as raw data is; some writers give each element its own entry.
    if given != size and given != math.ceil(size * min(bits, 8) / 8):
        raise InputError(f"{path}: tensor '{proto.name}' {list(proto.dims)} holds {given} elements, not {size}")
