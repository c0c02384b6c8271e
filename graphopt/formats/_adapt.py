"""Parts of ONNX that onnx_ir cannot read: swapped for stand-ins it can, and swapped back in the graph.

``stand_in`` changes a ModelProto; ``restore`` then works on what onnx_ir made of it:

- sparse initializers and a Constant's ``sparse_value`` become initializers and ``value`` tensors that read as dense
  (:class:`SparseTensor`), with the same meaning ONNX Runtime gives them;
- map and opaque types (what ZipMap returns) leave the value without a type; the TypeProto is kept as declared;
- other attributes that onnx_ir lacks are kept as protobuf messages;
- attributes without a type (files of IR version 1) get the type of the field that is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir
from onnx import AttributeProto, TypeProto

from graphopt.formats._tensors import SparseTensor
from graphopt.model import DECLARED, iter_graphs

#: Key of the stand-ins in metadata_props; its value is an index into the things set aside.
_MARK = "graphopt.stand-in"

_FIELDS = {
    "f": AttributeProto.FLOAT, "i": AttributeProto.INT, "s": AttributeProto.STRING, "t": AttributeProto.TENSOR,
    "g": AttributeProto.GRAPH, "floats": AttributeProto.FLOATS, "ints": AttributeProto.INTS,
    "strings": AttributeProto.STRINGS, "tensors": AttributeProto.TENSORS, "graphs": AttributeProto.GRAPHS,
    "sparse_tensor": AttributeProto.SPARSE_TENSOR, "tp": AttributeProto.TYPE_PROTO,
}  # fmt: skip


@dataclass
class StandIns:
    """What was taken out, by index."""

    things: list[Any] = field(default_factory=list)

    def put(self, thing: Any) -> str:
        self.things.append(thing)
        return str(len(self.things) - 1)


def needed(proto: onnx.ModelProto) -> bool:
    """Whether the model holds what onnx_ir would drop without a word. (What it refuses, it says.)"""
    graph = proto.graph
    return proto.ir_version < 3 or bool(graph.sparse_initializer) or any(_foreign(i.type) for i in (*graph.input, *graph.output))


def stand_in(proto: onnx.ModelProto) -> StandIns:
    """Replaces in ``proto`` what onnx_ir cannot read. Nothing is changed where nothing had to be."""
    out = StandIns()
    for graph in _graphs(proto):
        if isinstance(graph, onnx.GraphProto):
            for sparse in graph.sparse_initializer:
                _sparse_into(graph.initializer.add(), sparse, out)
            del graph.sparse_initializer[:]
            infos = (*graph.input, *graph.output, *graph.value_info)
        else:
            infos = tuple(graph.value_info)
        for info in infos:
            if _foreign(info.type):
                kept = TypeProto()
                kept.CopyFrom(info.type)
                info.metadata_props.add(key=_MARK, value=out.put(kept))
                info.ClearField("type")
        for node in graph.node:
            for attr in node.attribute:
                _attribute(node, attr, out)
    return out


def restore(model: ir.Model, kept: StandIns, read: Callable[[onnx.TensorProto], ir.TensorProtocol]) -> None:
    """Puts what ``stand_in`` took out into the graph. ``read`` makes a tensor of a TensorProto."""
    for graph in iter_graphs(model):
        for value in graph.initializers.values():
            value.const_value = _tensor(value.const_value, kept, read)
            _type(value, kept)
        for value in (*graph.inputs, *graph.outputs):
            _type(value, kept)
        for node in graph:
            for value in node.outputs:
                _type(value, kept)
            for name, attr in list(node.attributes.items()):
                if attr.is_ref():
                    continue
                if attr.type == ir.AttributeType.TENSOR:
                    tensor = _tensor(attr.value, kept, read)
                    if tensor is not attr.value:
                        node.attributes[name] = ir.AttrTensor(name, tensor, doc_string=attr.doc_string)
                elif attr.type == ir.AttributeType.STRING and str(attr.value).startswith(_MARK):
                    proto = kept.things[int(attr.value.removeprefix(_MARK))]
                    node.attributes[name] = ir.Attr(name, ir.AttributeType(proto.type), proto)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    todo: list[Any] = [proto.graph, *proto.functions]
    while todo:
        graph = todo.pop()
        yield graph
        for node in graph.node:
            for attr in node.attribute:
                if attr.HasField("g"):
                    todo.append(attr.g)
                todo.extend(attr.graphs)


def _foreign(proto: TypeProto) -> bool:
    """Whether a map or opaque type is in this type, at any depth."""
    while True:
        kind = proto.WhichOneof("value")
        if kind in ("map_type", "opaque_type"):
            return True
        if kind not in ("sequence_type", "optional_type"):
            return False
        proto = getattr(proto, kind).elem_type


def _sparse_into(tensor: onnx.TensorProto, sparse: onnx.SparseTensorProto, out: StandIns) -> None:
    kept = onnx.SparseTensorProto()
    kept.CopyFrom(sparse)
    tensor.name = sparse.values.name
    tensor.data_type = sparse.values.data_type
    tensor.dims.extend(sparse.dims)
    tensor.metadata_props.add(key=_MARK, value=out.put(kept))


def _attribute(node: onnx.NodeProto, attr: AttributeProto, out: StandIns) -> None:
    if attr.type == AttributeProto.UNDEFINED and not attr.ref_attr_name:
        given = {f.name for f, _ in attr.ListFields()} & set(_FIELDS)
        if len(given) == 1:
            attr.type = _FIELDS[given.pop()]
    if attr.type == AttributeProto.SPARSE_TENSOR and node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        # ONNX operator specification, Constant: sparse_value is one of the forms of its one value.
        _sparse_into(attr.t, attr.sparse_tensor, out)
        attr.name, attr.type = "value", AttributeProto.TENSOR
        attr.ClearField("sparse_tensor")
        return
    types = [attr.tp] if attr.type == AttributeProto.TYPE_PROTO else attr.type_protos
    if attr.ref_attr_name:
        return
    if attr.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS) or any(map(_foreign, types)):
        kept = AttributeProto()
        kept.CopyFrom(attr)
        name = attr.name
        attr.Clear()
        attr.name, attr.type, attr.s = name, AttributeProto.STRING, (_MARK + out.put(kept)).encode()


def _tensor(
    tensor: ir.TensorProtocol | None, kept: StandIns, read: Callable[[onnx.TensorProto], ir.TensorProtocol]
) -> ir.TensorProtocol | None:
    if tensor is None or _MARK not in tensor.metadata_props:
        return tensor
    sparse = kept.things[int(tensor.metadata_props[_MARK])]
    return SparseTensor(tensor.name, read(sparse.values), read(sparse.indices), list(sparse.dims))


def _type(value: ir.Value, kept: StandIns) -> None:
    mark = value.metadata_props.pop(_MARK, None)
    if mark is not None:
        value.meta[DECLARED] = (kept.things[int(mark)], None)
