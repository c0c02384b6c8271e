"""Whether two models are one to the runtime: it rewrites graphs at load too, and often ends with the same one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt import runtime
from graphopt.errors import InputError
from graphopt.settings import Settings

if TYPE_CHECKING:
    import onnx

# Bytes of a model up to which the runtime is asked to write its graph: it writes all the weights, too.
_LARGEST = 512 << 20
# Integer tensors up to this many elements are told apart by their values: they are shapes, axes, sizes.
_SMALL = 64


@dataclass(frozen=True)
class FinalGraph:
    """The graph that the runtime ends with; two are equal where they are the same to it (see `same_runtime_graph`).

    signature: a digest of its structure. operators: how often each occurs, subgraphs included, with the domain before
    those that are not ONNX's: "com.microsoft::BiasGelu".
    """

    signature: bytes
    operators: Mapping[str, int] = field(default_factory=dict, compare=False)


def same_runtime_graph(
    a: str | os.PathLike | bytes,
    b: str | os.PathLike | bytes,
    *,
    threads: int = 0,
    provider: str = "cpu",
    max_bytes: int = _LARGEST,
) -> bool | None:
    """Whether the runtime's own optimizations end with the same graph for both models.

    Same: the same operators with the same attributes, wired alike, on tensors of the same types and shapes; names and
    the values of weights do not count, but whether a weight holds denormal numbers does, for those cost time.
    None where there is no telling: a model of more than `max_bytes` with its external data (the runtime writes the
    whole graph to disk for this), or a provider whose graph the runtime cannot write.
    Raises InputError where the runtime turns a model down.
    """
    first = final_graph(a, threads=threads, provider=provider, max_bytes=max_bytes) if _bytes_of(b) <= max_bytes else None
    second = None if first is None else final_graph(b, threads=threads, provider=provider, max_bytes=max_bytes)
    return None if first is None or second is None else first == second


def final_graph(
    model: str | os.PathLike | bytes,
    *,
    threads: int = 0,
    provider: str = "cpu",
    settings: Settings | None = None,
    max_bytes: int = _LARGEST,
) -> FinalGraph | None:
    """The graph that the runtime ends with; None where there is no telling, as for `same_runtime_graph`."""
    return None if _bytes_of(model) > max_bytes else _final(model, threads, provider, settings)


def _bytes_of(model: str | os.PathLike | bytes) -> int:
    """Bytes of a model and of the external data that it refers to; of the file alone where it is no readable model."""
    import onnx
    from google.protobuf.message import DecodeError

    if isinstance(model, bytes):
        return len(model)
    try:
        size = os.path.getsize(model)
        if size > 2 << 30:  # more than protobuf parses, and than any bound worth setting
            return size
        graph = onnx.load(os.fspath(model), load_external_data=False).graph
    except FileNotFoundError as error:
        raise InputError(f"{os.fspath(model)}: no such file") from error
    except (OSError, DecodeError) as error:
        raise InputError(f"{os.fspath(model)}: cannot be read as an ONNX model ({error})") from error
    folder = Path(model).parent
    for tensor in graph.initializer:
        entries = {e.key: e.value for e in tensor.external_data}
        if "length" in entries:
            size += int(entries["length"])
        elif (file := folder / entries.get("location", "")).is_file():
            size += file.stat().st_size
    return size


def _final(model: str | os.PathLike | bytes, threads: int, provider: str, settings: Settings | None) -> FinalGraph | None:
    """The graph that the runtime ends with; None where it cannot write that graph."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="graphopt-graph-") as folder:
        path = Path(folder) / "final.onnx"
        try:
            runtime.session(model, threads=threads, provider=provider, settings=settings, optimized_path=path)
        except InputError:
            # Either the model is at fault, and then this raises again, or only the writing of the graph was.
            runtime.session(model, threads=threads, provider=provider, settings=settings)
            return None
        if not path.exists():
            return None
        final = onnx.load(path, load_external_data=False)
    # Weights that the runtime left alone it still refers to where they were, relative to the model's own folder.
    folder = "" if isinstance(model, bytes) else os.path.dirname(os.path.abspath(model))
    try:
        onnx.load_external_data_for_model(final, folder)
    except (OSError, onnx.checker.ValidationError):  # the runtime reads more paths (links) than the onnx package does
        return None
    return FinalGraph(signature(final), Counter(_operators(final.graph)))


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else attribute.graphs):
                yield from _operators(inner)


def signature(model: onnx.ModelProto) -> bytes:
    """A digest of a model's structure: equal for graphs that differ in names, in the order of nodes or in weights only."""
    used = {n.domain for n in model.graph.node}
    opsets = sorted((o.domain, o.version) for o in model.opset_import if o.domain in used)
    functions = sorted(f.SerializeToString(deterministic=True) for f in model.functions)  # the runtime inlines them
    return _digest("model", repr(opsets), *functions, _graph(model.graph, {}))


def _graph(graph: onnx.GraphProto, outer: Mapping[str, bytes]) -> bytes:
    """outer: digests of the values that a subgraph may capture."""
    values = dict(outer)
    for i, info in enumerate(graph.input):
        values[info.name] = _digest("input", str(i), _type(info.type))
    for tensor in graph.initializer:
        values[tensor.name] = _tensor(tensor)
    for sparse in graph.sparse_initializer:
        values[sparse.values.name] = _digest("sparse", repr(list(sparse.dims)), _tensor(sparse.values), _tensor(sparse.indices))
    nodes = []
    for node in graph.node:  # the runtime writes them sorted: what a node reads is known by now
        attributes = [_attribute(a, values) for a in sorted(node.attribute, key=lambda a: a.name)]
        inputs = [values.get(i, b"unknown") if i else b"none" for i in node.input]
        digest = _digest("node", node.domain, node.op_type, *attributes, "inputs", *inputs)
        nodes.append(digest)
        for i, name in enumerate(node.output):
            if name:
                values[name] = _digest(digest, str(i))
    outputs = [values.get(o.name, b"unknown") for o in graph.output]
    return _digest("graph", *sorted(nodes), "outputs", *outputs)


def _attribute(attribute: onnx.AttributeProto, values: Mapping[str, bytes]) -> bytes:
    graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    if graphs:
        return _digest("graphs", attribute.name, *(_graph(g, values) for g in graphs))
    if attribute.HasField("t"):
        return _digest("tensor", attribute.name, _tensor(attribute.t))
    plain = type(attribute)()
    plain.CopyFrom(attribute)
    plain.ClearField("doc_string")
    return _digest("plain", plain.SerializeToString(deterministic=True))


def _tensor(tensor: onnx.TensorProto) -> bytes:
    import numpy as np
    import onnx

    kind = f"{tensor.data_type} {list(tensor.dims)}"
    if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        array = onnx.numpy_helper.to_array(tensor)
        denormal = np.any((array != 0) & (np.abs(array) < np.finfo(array.dtype).tiny))
        return _digest("weight", kind, "denormal" if denormal else "normal")
    if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL):
        array = onnx.numpy_helper.to_array(tensor)
        if array.size <= _SMALL:
            return _digest("integers", kind, repr(array.tolist()))
    return _digest("tensor", kind)


def _type(proto: onnx.TypeProto) -> str:
    if not proto.HasField("tensor_type"):
        return str(proto)
    dims = [d.dim_value if d.HasField("dim_value") else "?" for d in proto.tensor_type.shape.dim]
    return f"{proto.tensor_type.elem_type} {dims}"


def _digest(*parts: str | bytes) -> bytes:
    """A hash of the parts, each with its length before it so that no two lists of parts read alike."""
    made = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "little") + data)
    return made.digest()
