"""What a file holds and the graph in memory has no place for: set aside at load, given back at save."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import onnx_ir as ir

#: Key of :class:`Carried` in ``graph.meta`` of the main graph, where cloning a model keeps it.
KEY = "graphopt.carried"


@dataclass
class Carried:
    """The rest of a model's file.

    ``inputs`` and ``outputs`` are the contract with callers: whatever passes infer, the file says what it said.
    """

    inputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    outputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    #: Order of the inputs in the file where initializers were among them (IR version below 4), else empty.
    input_order: list[str] = field(default_factory=list)
    training_info: list[onnx.TrainingInfoProto] = field(default_factory=list)
    #: The weights were in files of their own: so they will be again.
    external: bool = False
    #: The file named no opset at all (IR version below 3, where naming one is an error).
    no_opset: bool = False


def carried(graph: ir.Model) -> Carried:
    """What was set aside for this model; of a model built in memory, nothing."""
    return graph.graph.meta.get(KEY) or Carried()


def keep_contract(source: ir.Model, target: ir.Model) -> None:
    """Makes a model say of itself, its inputs and its outputs what another one of the same interface says.

    Opsets that no node of `target` needs, and `source` does not import, are no longer imported.
    """
    theirs, own = carried(source), carried(target)
    target.graph.meta[KEY] = replace(theirs, external=theirs.external or own.external, no_opset=False)
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(target, name, getattr(source, name))
    target.graph.name, target.graph.doc_string = source.graph.name, source.graph.doc_string
    for mine, properties in ((target, source), (target.graph, source.graph)):
        mine.metadata_props.clear()
        mine.metadata_props.update(properties.metadata_props)
    used = {node.domain for node in target.graph.all_nodes()} | {domain for domain, *_ in target.functions}
    for domain in [d for d in target.opset_imports if d not in used and d not in source.opset_imports]:
        del target.opset_imports[domain]


def set_aside(proto: onnx.ModelProto) -> Carried:
    """Copies what is to be carried out of a ModelProto."""
    kept = Carried(
        inputs={info.name: _copy(info) for info in proto.graph.input},
        outputs={info.name: _copy(info) for info in proto.graph.output},
        training_info=[_copy(info) for info in proto.training_info],
        no_opset=not proto.opset_import,
    )
    if proto.ir_version < 4:
        kept.input_order = [info.name for info in proto.graph.input]
    return kept


def leaf(proto: onnx.TypeProto) -> onnx.TypeProto.Tensor | onnx.TypeProto.SparseTensor | None:
    """The tensor type inside a type: itself, or of a sequence or optional of it. None of a map, or where unknown."""
    while True:
        kind = proto.WhichOneof("value")
        if kind in ("tensor_type", "sparse_tensor_type"):
            return getattr(proto, kind)
        if kind not in ("sequence_type", "optional_type"):
            return None
        proto = getattr(proto, kind).elem_type


def dims_of(info: onnx.ValueInfoProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    inner = leaf(info.type)
    if inner is not None and inner.HasField("shape"):
        yield from inner.shape.dim


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
