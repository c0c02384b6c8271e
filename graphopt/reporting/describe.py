"""A model in numbers, for the report: nodes, bytes, parameters, operators. No weight is read for them."""

from __future__ import annotations

import math
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir


def describe(model: ir.Model, path: str | os.PathLike | None) -> dict[str, Any]:
    """{"nodes", "bytes", "parameters", "operators"} of a model.

    nodes: of the main graph, its subgraphs and the local functions in use, a function once however often it is called.
    bytes: of the file at `path` and of the external data files that it refers to; None without a path.
    parameters: elements of all initializers and Constant nodes, whatever their type.
    operators: {"Conv": 20, "com.microsoft::Gelu": 1, ...}, the most frequent first.
    Raises OSError where the file is not there.
    """
    operators: Counter[str] = Counter()
    parameters = 0
    for graph in _graphs(model):
        for node in graph:
            operators[_operator(node)] += 1
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                parameters += _constant_size(node)
        # A function has inputs where a graph has initializers.
        for value in getattr(graph, "initializers", {}).values():
            parameters += _size(value)
    ordered = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    return {
        "nodes": sum(operators.values()),
        "bytes": None if path is None else file_bytes(path),
        "parameters": parameters,
        "operators": dict(ordered),
    }


def describe_interface(model: ir.Model, path: str | os.PathLike, kind: str = "onnx") -> dict[str, Any]:
    """The report's "model": path, kind, opset of the default domain, inputs and outputs as {"name", "type", "shape"}.

    Dimensions are numbers, names, or None where unknown; a shape is None where even the rank is.
    """

    def values(of) -> list[dict[str, Any]]:
        return [{"name": v.name, "type": None if v.type is None else _type(v.type), "shape": _shape(v.shape)} for v in of]

    initializers = model.graph.initializers
    return {
        "path": os.fspath(path),
        "kind": kind,
        "opset": model.opset_imports.get(""),
        "inputs": values(i for i in model.graph.inputs if i.name not in initializers),
        "outputs": values(model.graph.outputs),
    }


def file_bytes(path: str | os.PathLike) -> int:
    """Bytes of a model file and of the external data files that it names, each once, as far as they exist."""
    path = Path(path)
    size = path.stat().st_size
    for name in sorted(external_files(path)):
        file = path.parent / name
        if file.is_file():
            size += file.stat().st_size
    return size


# Fields of ONNX's messages that lead to a tensor with external data, by message (onnx.proto3).
_PATHS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_files(path: str | os.PathLike) -> set[str]:
    """The locations of external data that an ONNX file names, relative to its folder; none where it is no ONNX file.

    Walks the protobuf messages by their lengths and skips what is not on the way, weights above all: a file of
    gigabytes costs no memory.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return set()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return set(_locations(data, 0, len(data), "model"))
            except (IndexError, UnicodeDecodeError, _Malformed):
                return set()


class _Malformed(ValueError):
    """Bytes that are no protobuf message."""


def _locations(data: mmap.mmap, start: int, end: int, message: str) -> Iterator[str]:
    if message == "entry":
        fields = {n: data[a:b] for n, a, b in _fields(data, start, end)}
        if fields.get(1) == b"location":
            yield fields.get(2, b"").decode()
        return
    # Most nodes have nothing outside: one look at the bytes saves the walk through their attributes.
    if message == "node" and end - start < 65536 and data.find(b"location", start, end) < 0:
        return
    inside = _PATHS[message]
    for number, a, b in _fields(data, start, end):
        if number in inside:
            yield from _locations(data, a, b, inside[number])


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of the length-delimited fields of the message at data[at:end].

    Source: protobuf.dev/programming-guides/encoding.
    """
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > end:
                raise _Malformed
            yield key >> 3, at, at + length
            at += length
        else:
            raise _Malformed


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise _Malformed


def _graphs(model: ir.Model) -> Iterator[Any]:
    """The main graph, the functions that it reaches, and all their subgraphs; each once."""
    waiting: list[Any] = [model.graph]
    seen_functions: set[tuple] = set()
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type.name == "GRAPH":
                    waiting.append(attribute.value)
                elif attribute.type.name == "GRAPHS":
                    waiting.extend(attribute.value)
            key = node.op_identifier()
            if key in model.functions and key not in seen_functions:
                seen_functions.add(key)
                waiting.append(model.functions[key])


def _operator(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _constant_size(node: ir.Node) -> int:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            return 0
        if attribute.type.name == "TENSOR":
            return math.prod(int(d) for d in attribute.value.shape)
        if attribute.type.name in ("FLOATS", "INTS", "STRINGS"):
            return len(attribute.value)
        if attribute.type.name in ("FLOAT", "INT", "STRING"):
            return 1
    return 0


def _size(value: ir.Value) -> int:
    """Elements of an initializer, from its shape: the tensor itself may be on disk and stays there."""
    shape = value.const_value.shape if value.const_value is not None else value.shape
    if shape is None or not all(isinstance(d, int) for d in shape):
        return 0
    return math.prod(shape)


def _type(kind: ir.TypeProtocol) -> str:
    """The type as ONNX Runtime spells it: "tensor(float)", "seq(tensor(int64))"."""
    name = type(kind).__name__
    if name == "SequenceType":
        return f"seq({_type(kind.elem_type)})"
    if name == "OptionalType":
        return f"optional({_type(kind.elem_type)})"
    element = kind.dtype.name.lower()
    return f"{'sparse_' if name == 'SparseTensorType' else ''}tensor({element})"


def _shape(shape: ir.Shape | None) -> list[int | str | None] | None:
    if shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in shape]
