"""From the graph in memory to the bytes of an ONNX file.

onnx_ir can serialize a graph too. This writer differs where the contract of a saved model asks for it: inputs and
outputs are declared as they were, inferred shapes and the shapes of initializers are not written, what onnx_ir cannot
express is given back, and large weights go from their file to the new one without passing through a protobuf.
Fields are written in the order of their numbers, as protobuf does, so equal models are equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir import serde

from graphopt.formats._carried import Carried, carried, leaf
from graphopt.formats._tensors import SparseTensor, kind_of, nbytes_of
from graphopt.formats._wire import varint
from graphopt.model import DECLARED, INFERRED

#: Where a value keeps its marks. `value.meta` would make a store for each of a hundred thousand values that has none.
_marks = ir.Value._metadata.__get__  # type: ignore[attr-defined]

#: Initializers from this size on are written straight to the file.
_STREAM = 1 << 16
#: Nodes, and bytes of small initializers, that are turned into bytes at a time.
_CHUNK, _HELD = 1000, 16 << 20
#: onnx_ir keeps quantization annotations of a value in its meta, under this key.
_QUANTIZATION = "quant_parameter_tensor_names"
#: FunctionProto.value_info exists from this IR version on; device configurations from that one.
_FUNCTION_VALUE_INFO, _DEVICES = 10, 11

_Piece = bytes | ir.TensorProtocol
_GRAPH_KEY, _INITIALIZER_KEY, _RAW_DATA_KEY = b"\x3a", b"\x2a", b"\x4a"


class Writer:
    """Turns one model into pieces: bytes, and tensors whose raw bytes stand in their place.

    ``external`` says where the bytes of tensors (by identity) lie that have a file of their own:
    (location, offset, length).
    """

    def __init__(self, model: ir.Model, external: dict[int, tuple[str, int, int]]) -> None:
        self._model = model
        self._external = external
        self._carried: Carried = carried(model)

    def pieces(self) -> list[_Piece]:
        """The whole ModelProto."""
        model, kept = self._model, self._carried
        head, tail = onnx.ModelProto(ir_version=model.ir_version), onnx.ModelProto()
        for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            if getattr(model, name):
                setattr(head, name, getattr(model, name))
        if not (kept.no_opset and model.ir_version < 3):
            _opsets(tail.opset_import, model.opset_imports)
        _properties(tail.metadata_props, model.metadata_props)
        tail.training_info.extend(kept.training_info)
        for function in model.functions.values():
            self._function(tail.functions.add(), function)
        if model.ir_version >= _DEVICES:
            for configuration in model.device_configurations:
                tail.configuration.append(serde.serialize_model_configuration(configuration))
        graph = self._graph_pieces()
        return [_bytes(head), _GRAPH_KEY + varint(size_of(graph)), *graph, _bytes(tail)]

    def _graph_pieces(self) -> list[_Piece]:
        """The main graph: nodes in chunks, large initializers left to be streamed, then all the rest."""
        graph, pieces, rest = self._model.graph, [], onnx.GraphProto()
        chunk = onnx.GraphProto()
        for count, node in enumerate(graph, 1):
            self._node(chunk.node.add(), node)
            if count % _CHUNK == 0:
                pieces.append(_bytes(chunk))
                chunk.Clear()
        if graph.name:
            chunk.name = graph.name
        pieces.append(_bytes(chunk))
        chunk.Clear()
        held = 0
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or kind_of(tensor) is SparseTensor:
                continue
            streamed = self._streamed(tensor)
            if not streamed:
                self._tensor(chunk.initializer.add(), tensor, value.name)
                held += 0 if id(tensor) in self._external else nbytes_of(tensor)
            if streamed or held > _HELD:
                pieces.append(_bytes(chunk))
                chunk.Clear()
                held = 0
            if streamed:
                pieces += _streamed(tensor, value.name)
        pieces.append(_bytes(chunk))
        self._graph_rest(rest, graph, top=True)
        if self._model.ir_version < _FUNCTION_VALUE_INFO:
            for function in self._model.functions.values():
                self._experimental_value_info(rest, function)
        pieces.append(_bytes(rest))
        return pieces

    def _streamed(self, tensor: ir.TensorProtocol) -> bool:
        return (
            id(tensor) not in self._external and kind_of(tensor) not in (ir.TensorProtoTensor, ir.StringTensor) and tensor.nbytes >= _STREAM
        )

    def _graph(self, proto: onnx.GraphProto, graph: ir.Graph) -> None:
        """A graph in an attribute."""
        if graph.name:
            proto.name = graph.name
        for node in graph:
            self._node(proto.node.add(), node)
        for value in graph.initializers.values():
            if value.const_value is not None and kind_of(value.const_value) is not SparseTensor:
                self._tensor(proto.initializer.add(), value.const_value, value.name)
        self._graph_rest(proto, graph, top=False)

    def _graph_rest(self, proto: onnx.GraphProto, graph: ir.Graph, *, top: bool) -> None:
        """Everything of a graph but its nodes and dense initializers."""
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        contract = self._carried if top else Carried()
        listed = self._listed(graph) if top else graph.inputs
        for value in listed:
            self._value(proto.input.add(), value, contract.inputs.get(value.name), own=top or not _inferred(value))
        for value in graph.outputs:
            self._value(proto.output.add(), value, contract.outputs.get(value.name), own=top or not _inferred(value))
        inputs = {value.name for value in listed}
        annotated = []
        for value in graph.inputs:
            if value.name not in graph.initializers:
                annotated.append(value)
        for value in graph.initializers.values():
            annotated.append(value)
            # Its type and shape are the tensor's: they are only written where the file wrote them.
            if value.name not in inputs and (_declared(value) or value.doc_string or value._metadata_props):
                self._value(proto.value_info.add(), value, None, own=False)
            if kind_of(value.const_value) is SparseTensor:
                self._sparse(proto.sparse_initializer.add(), value.const_value, value.name)
        for node in graph:
            for value in node.outputs:
                if _marks(value) is not None:
                    annotated.append(value)
                if not value.is_graph_output():
                    self._value_info(proto.value_info, value)
        for value in annotated:
            names = _marks(value).get(_QUANTIZATION) if _marks(value) is not None else None
            if names:
                annotation = proto.quantization_annotation.add(tensor_name=value.name)
                _properties(annotation.quant_parameter_tensor_names, names)
        _properties(proto.metadata_props, graph.metadata_props)

    def _listed(self, graph: ir.Graph) -> Iterable[ir.Value]:
        """The inputs as the file lists them: below IR version 4, with all initializers (IR specification, "Graphs")."""
        if self._model.ir_version >= 4:
            return graph.inputs
        values = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
        first = [name for name in self._carried.input_order if name in values]
        return [values[name] for name in dict.fromkeys((*first, *values))]

    def _function(self, proto: onnx.FunctionProto, function: ir.Function) -> None:
        for name in ("name", "domain", "overload", "doc_string"):
            if getattr(function, name):
                setattr(proto, name, getattr(function, name))
        _opsets(proto.opset_import, function.opset_imports)
        _properties(proto.metadata_props, function.metadata_props)
        proto.input.extend(value.name for value in function.inputs)
        proto.output.extend(value.name for value in function.outputs)
        for attr in function.attributes.values():
            if attr.value is None:
                proto.attribute.append(attr.name)
            else:
                self._attribute(proto.attribute_proto.add(), attr)
        infos = proto.value_info if self._model.ir_version >= _FUNCTION_VALUE_INFO else None
        if infos is not None:
            for value in function.inputs:
                self._value_info(infos, value)
        for node in function:
            self._node(proto.node.add(), node)
            if infos is not None:
                for value in node.outputs:
                    self._value_info(infos, value)

    def _experimental_value_info(self, proto: onnx.GraphProto, function: ir.Function) -> None:
        """Shapes inside functions, where older files keep them: in the main graph, as torch's exporter names them."""
        for value in (*function.inputs, *(output for node in function for output in node.outputs)):
            if self._value_info(proto.value_info, value):
                proto.value_info[-1].name = f"{function.domain}::{function.name}/{value.name}"

    def _node(self, proto: onnx.NodeProto, node: ir.Node) -> None:
        proto.op_type = node.op_type
        if node.domain:
            proto.domain = node.domain
        if node.name:
            proto.name = node.name
        if node.overload:
            proto.overload = node.overload
        if node.doc_string:
            proto.doc_string = node.doc_string
        if node._metadata_props:
            _properties(proto.metadata_props, node.metadata_props)
        proto.input.extend(["" if value is None else value.name for value in node.inputs])
        outputs = [value.name or "" for value in node.outputs]
        while outputs and not outputs[-1]:
            outputs.pop()
        proto.output.extend(outputs)
        for attr in node.attributes.values():
            self._attribute(proto.attribute.add(), attr)
        if node.device_configurations and self._model.ir_version >= _DEVICES:
            for configuration in node.device_configurations:
                proto.device_configurations.append(serde.serialize_node_device_configuration(configuration))

    def _attribute(self, proto: onnx.AttributeProto, attr: ir.Attr) -> None:
        kind, value = attr.type, attr.value
        if attr.is_ref():
            serde.serialize_reference_attribute_into(proto, attr)
        elif kind == ir.AttributeType.INT and not attr.doc_string:
            proto.name, proto.type, proto.i = attr.name, onnx.AttributeProto.INT, value
        elif kind == ir.AttributeType.INTS and not attr.doc_string:
            proto.name, proto.type = attr.name, onnx.AttributeProto.INTS
            proto.ints.extend(value)
        elif isinstance(value, onnx.AttributeProto):
            proto.CopyFrom(value)  # set aside as it was
        elif kind == ir.AttributeType.TENSOR and isinstance(value, SparseTensor):
            proto.name, proto.type = "sparse_value", onnx.AttributeProto.SPARSE_TENSOR
            self._sparse(proto.sparse_tensor, value, value.name)
        elif kind == ir.AttributeType.UNDEFINED:
            proto.name = attr.name
        elif kind in _WITH_PARTS:
            proto.name, proto.type = attr.name, kind.value
            if attr.doc_string:
                proto.doc_string = attr.doc_string
            if kind == ir.AttributeType.TENSOR:
                self._tensor(proto.t, value, value.name)
            elif kind == ir.AttributeType.TENSORS:
                for tensor in value:
                    self._tensor(proto.tensors.add(), tensor, tensor.name)
            elif kind == ir.AttributeType.GRAPH:
                self._graph(proto.g, value)
            else:
                for graph in value:
                    self._graph(proto.graphs.add(), graph)
        else:
            serde.serialize_attribute_into(proto, attr)

    def _tensor(self, proto: onnx.TensorProto, tensor: ir.TensorProtocol, name: str | None) -> None:
        place = self._external.get(id(tensor))
        if place is not None:
            _header(proto, tensor, name)
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, value in zip(("location", "offset", "length"), place, strict=True):
                proto.external_data.add(key=key, value=str(value))
        elif kind_of(tensor) is ir.TensorProtoTensor:
            proto.CopyFrom(tensor.raw)
            if name != proto.name:
                proto.name = name or ""
            if tensor._metadata_props:
                del proto.metadata_props[:]
                _properties(proto.metadata_props, tensor.metadata_props)
        else:
            _header(proto, tensor, name)
            if kind_of(tensor) is ir.StringTensor:
                proto.string_data.extend(tensor.string_data())
            else:
                proto.raw_data = tensor.tobytes()

    def _sparse(self, proto: onnx.SparseTensorProto, tensor: SparseTensor, name: str | None) -> None:
        # "values must have a non-empty name", which is the initializer's (onnx.proto, SparseTensorProto).
        self._tensor(proto.values, tensor.values, name)
        self._tensor(proto.indices, tensor.indices, tensor.indices.name)
        proto.dims.extend(tensor.shape.numpy())

    def _value_info(self, infos: Any, value: ir.Value) -> bool:
        """Adds what the file shall say of an intermediate value, if anything; True if it did."""
        if not value.name:
            return False
        kind, shape = _declared(value) or ((None, None) if _inferred(value) else (value.type, value.shape))
        if kind is None and shape is None and not value.doc_string and not value._metadata_props:
            return False
        self._value(infos.add(), value, None, own=not _inferred(value))
        return True

    def _value(self, proto: onnx.ValueInfoProto, value: ir.Value, contract: onnx.ValueInfoProto | None, *, own: bool = True) -> None:
        """``own``: without a declared type, the value's own is written (and the tensor's, of an initializer)."""
        proto.name = value.name
        kind, shape = _declared(value) or ((value.type, value.shape) if own else (None, None))
        doc, properties = value.doc_string, value._metadata_props
        if contract is not None:
            inner = leaf(contract.type)
            if value.dtype is None or inner is None or inner.elem_type in (0, value.dtype.value):
                # A pass that gives an output another element type means to. All else about it is the contract.
                kind = contract.type
            doc = doc or contract.doc_string
            properties = properties or {entry.key: entry.value for entry in contract.metadata_props}
        if isinstance(kind, onnx.TypeProto):
            proto.type.CopyFrom(kind)
        elif kind is not None:
            serde.serialize_type_into(proto.type, kind)
            if shape is not None:
                serde.serialize_shape_into(proto.type, shape)
        if doc:
            proto.doc_string = doc
        if properties:
            _properties(proto.metadata_props, properties)


_WITH_PARTS = {ir.AttributeType.TENSOR, ir.AttributeType.TENSORS, ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


def _declared(value: ir.Value) -> tuple[Any, ir.Shape | None] | None:
    marks = _marks(value)
    return marks.get(DECLARED) if marks is not None else None


def _inferred(value: ir.Value) -> bool:
    marks = _marks(value)
    return marks is not None and bool(marks.get(INFERRED))


def _header(proto: onnx.TensorProto, tensor: ir.TensorProtocol, name: str | None) -> None:
    proto.dims.extend(tensor.shape.numpy())
    proto.data_type = tensor.dtype.value
    if name:
        proto.name = name
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    if tensor.metadata_props:
        _properties(proto.metadata_props, tensor.metadata_props)


def _streamed(tensor: ir.TensorProtocol, name: str | None) -> list[_Piece]:
    """An initializer whose raw data are not held in memory: its other fields before and after, by number."""
    proto = onnx.TensorProto()
    _header(proto, tensor, name)
    after = onnx.TensorProto(doc_string=tensor.doc_string or None, metadata_props=proto.metadata_props)
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
    before = _bytes(proto) + _RAW_DATA_KEY + varint(tensor.nbytes)
    behind = _bytes(after)
    size = len(before) + tensor.nbytes + len(behind)
    return [_INITIALIZER_KEY + varint(size) + before, tensor, behind]


def size_of(pieces: Iterable[_Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in pieces)


def _bytes(message: Any) -> bytes:
    return message.SerializeToString(deterministic=True)


def _opsets(protos: Any, imports: dict[str, int]) -> None:
    for domain, version in imports.items():
        protos.add(domain=domain, version=version)


def _properties(protos: Any, properties: dict[str, str]) -> None:
    for key, value in properties.items():
        protos.add(key=key, value=value)
