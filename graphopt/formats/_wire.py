"""Protobuf's wire format, as far as it is needed to leave large inline weights in their file.

A ModelProto is ``graph = 7``, a GraphProto ``initializer = 5``, a TensorProto ``dims = 1``, ``data_type = 2``,
``name = 8``, ``raw_data = 9``, ``external_data = 13``, ``data_location = 14`` (onnx.proto). A message is a sequence of
fields: a varint key (number << 3 | wire type), then a varint (0), 8 bytes (1), a length and that many bytes (2), or
4 bytes (5). Fields may stand in any order; appending a field to a message is the same as setting it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import onnx
import onnx_ir as ir

#: Marks the location of a tensor that was left in its file. No path can contain this character.
IN_FILE = "\0inline"

_GRAPH, _INITIALIZER = 7, 5
_DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 2, 9, 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not a sequence of protobuf fields."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def without_large_weights(data: mmap.mmap, threshold: int) -> bytes:
    """The bytes of the ModelProto in ``data``, less the raw data of initializers of at least ``threshold`` bytes.

    Such an initializer becomes an external tensor whose location is :data:`IN_FILE` and whose offset and length say
    where in the file the bytes are. Only the main graph's initializers are looked at: elsewhere weights are small.

    Raises:
        WireError: the bytes are cut short or are no protobuf message.
    """
    model: list[bytes] = []
    for number, _, start, begin, end in _fields(data, 0, len(data)):
        if number != _GRAPH:
            model.append(data[start:end])
            continue
        graph: list[bytes] = []
        kept = begin  # what lies between two initializers that change is copied in one piece
        for number, wire, start, inner, end_inner in _fields(data, begin, end):
            if number == _INITIALIZER and wire == _BYTES and end_inner - inner >= threshold:
                tensor = _stripped(data, inner, end_inner, threshold)
                if tensor is not None:
                    graph += [data[kept:start], b"\x2a", varint(len(tensor)), tensor]
                    kept = end_inner
        graph.append(data[kept:end])
        model += [b"\x3a", varint(sum(map(len, graph))), *graph]
    return b"".join(model)


def _stripped(data: mmap.mmap, begin: int, end: int, threshold: int) -> bytes | None:
    """The TensorProto in ``data[begin:end]`` with its raw data left behind, None where that cannot be done."""
    parts, raw, dtype = [], None, 0
    for number, wire, start, inner, stop in _fields(data, begin, end):
        if number == _RAW_DATA and wire == _BYTES:
            raw = (inner, stop - inner)  # of a field that is given twice, protobuf takes the last
            continue
        if number == _DATA_TYPE and wire == _VARINT:
            dtype = _varint(data, inner, stop)[0]
        if number == _DATA_LOCATION and wire == _VARINT and _varint(data, inner, stop)[0] == onnx.TensorProto.DEFAULT:
            continue  # onnx writes it for weights that once were external
        if number in (_EXTERNAL_DATA, _DATA_LOCATION):
            return None
        if stop - start > threshold:
            return None  # large, but not as raw data: float_data and the like stay with protobuf
        parts.append(data[start:stop])
    if raw is None or raw[1] < threshold or dtype not in _BYTE_SIZED:
        return None
    mark = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in ("location", IN_FILE), ("offset", str(raw[0])), ("length", str(raw[1])):
        mark.external_data.add(key=key, value=value)
    return b"".join([*parts, mark.SerializeToString()])


#: Types whose elements are whole bytes: their raw data is the array.
_BYTE_SIZED = frozenset(t.value for t in ir.DataType if t.value and t != ir.DataType.STRING and t.bitwidth % 8 == 0)


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(number, wire type, start of the key, start of the payload, end) of the fields in ``data[begin:end]``."""
    at = begin
    while at < end:
        start = at
        key, at = _varint(data, at, end)
        wire = key & 7
        payload = at
        if wire == _BYTES:
            length, payload = _varint(data, at, end)
            at = payload + length
        elif wire == _VARINT:
            at = _varint(data, at, end)[1]
        elif wire == _FIXED32:
            at += 4
        elif wire == _FIXED64:
            at += 8
        else:
            raise WireError(f"wire type {wire} at byte {start}")
        if at > end or key < 8:
            raise WireError(f"a field at byte {start} runs over the end of its message")
        yield key >> 3, wire, start, payload, at


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise WireError(f"a number that is cut short at byte {at}")
