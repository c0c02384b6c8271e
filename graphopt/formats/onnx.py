"""Loading and saving ONNX models."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx.defs
import onnx_ir as ir

from graphopt.errors import InputError, OutputError
from graphopt.formats import _files, _reading, _structure
from graphopt.formats._carried import KEY, carried, set_aside
from graphopt.formats._inputs import fix_initializers, fix_shapes
from graphopt.formats._tensors import SparseTensor, kind_of, nbytes_of
from graphopt.formats._writing import Writer, size_of
from graphopt.model import DECLARED, Model, file_stamp, iter_graphs

__all__ = ["digest", "fix_initializers", "fix_shapes", "load", "looks_like_onnx", "save", "to_bytes"]

#: protobuf's limit for a message is 2**31 - 1 bytes; the margin is for tools that wrap the message once more.
_LIMIT = 2**31 - (1 << 20)
#: A new tensor of at least this many bytes joins the data file of a model that has one.
_EXTERNAL_FROM = 1 << 10
#: Where tensors begin in a data file: at a cache line, for whoever maps the file and computes on it.
_ALIGNMENT = 64


def load(path: os.PathLike | str, *, shapes: Mapping[str, Sequence[int]] | None = None) -> Model:
    """Loads an ONNX model. Weights stay where they are until something looks at them.

    Below IR version 4 an initializer must also be listed as an input, and ONNX Runtime (1.32) does not let a caller
    feed it: it shows up neither among the inputs nor among the overridable initializers, and feeding it is an error.
    From version 4 on it does. So the inputs that are initializers are taken off an older model's inputs, whereupon
    they are constants for every pass, and put back into the file by :func:`save`.

    Raises:
        InputError: the file cannot be read, is no ONNX model, or the model is damaged (one line, naming the cause).
        OptionError: ``shapes`` does not fit the model (see :func:`fix_shapes`).
    """
    path = Path(path)
    stamp = file_stamp(path)
    with _reading.paused_gc():
        proto = _reading.read_proto(path)
        kept = set_aside(proto)
        notes = _remarks(proto)
        documented = _documented_initializers(proto.graph)
        imports = [_unified(proto.opset_import, "the model", notes) or {"": 1}]
        imports += [_unified(function.opset_import, f"function '{function.name}'", notes) for function in proto.functions]
        try:
            graph = _checked(proto, path, imports, notes)
        except _structure.StructureError:
            # Perhaps not a fault but a sparse initializer of a subgraph, which onnx_ir passed over.
            try:
                graph = _checked(proto, path, imports, notes, thorough=True)
            except _structure.StructureError as error:
                raise InputError(f"{path}: {error}") from None
        del proto
        stamps = {path: stamp} if stamp else {}
        kept.external = _reading.settle_tensors(graph, path, stamps)
        for name in documented:
            value = graph.graph.initializers.get(name)
            if value is not None:
                value.meta[DECLARED] = (value.type, value.shape)
        graph.graph.meta[KEY] = kept
        if graph.ir_version < 4:
            graph.graph.inputs[:] = [value for value in graph.graph.inputs if not value.is_initializer()]
    model = Model(graph, "onnx", path, notes, stamps)
    if shapes:
        wanted = {name: list(dims) for name, dims in shapes.items()}
        model.prepare(lambda loaded: fix_shapes(loaded, wanted))
    return model


def _checked(proto: onnx.ModelProto, path: Path, imports: list[dict[str, int]], notes: list[str], *, thorough: bool = False) -> ir.Model:
    graph = _reading.to_graph(proto, path, thorough=thorough)
    for part, versions in zip((graph.graph, *graph.functions.values()), imports, strict=False):
        part.opset_imports.clear()
        part.opset_imports.update(versions)
    found: list[str] = []
    _structure.check(graph, found)
    notes += found
    return graph


def save(model: Model, path: os.PathLike | str, *, in_place: bool = False) -> list[Path]:
    """Saves a model; returns the files written, the .onnx first.

    Weights go to one data file beside the model, NAME.onnx.data, if they came from files of their own or if the model
    would exceed protobuf's 2 GB. Everything is written under temporary names first and renamed when it is complete. The
    old .onnx is not in the way of a data file that changes under it: either the new data have a name of their own, or,
    where the target is an earlier result, the old .onnx is removed before its data are replaced. So whenever the
    process dies, the target is the old model, the new one, or (only if it is not the input) absent.

    After saving in place, the graph in memory may refer to weights that are no longer there: load it again.

    Raises:
        OutputError: the target is the input (without ``in_place``) or a data file of it, or cannot be written.
        InputError: a file that weights are read from was changed or removed since the model was loaded.
    """
    path, graph = Path(path), model.graph
    _files.check_target(path)
    tensors = list(parts(graph))
    sources = _sources(model, tensors)
    for source in sources:
        if _files.same_file(path, source):
            if source != model.path:
                raise OutputError(f"{path}: holds weights of the input; choose another name for the result")
            if not in_place:
                raise OutputError(f"{path}: is the input; choose another name, or replace it with --in-place")
    _check_sources(model)
    with _reading.paused_gc():
        data_path = _free_data_name(path, sources)
        plan = Plan(graph, tensors, data_path.name, everything=False)
        pieces = Writer(graph, plan.places).pieces()
        if size_of(pieces) > _LIMIT:
            plan = Plan(graph, tensors, data_path.name, everything=True)
            pieces = Writer(graph, plan.places).pieces()
            if size_of(pieces) > _LIMIT:
                raise OutputError(f"{path}: the graph without its weights is larger than the 2 GB that ONNX allows")
    old_data = [name for name in _data_names(path) if _files.mentions(path, name.name)]
    _files.remove_leftovers(path)
    pending: list[_files.Pending] = []
    with _files.explained(path):
        try:
            if plan.tensors:
                _files.remove_leftovers(data_path)
                pending.append(_files.Pending(data_path))
                plan.write(pending[-1].file)
            pending.append(_files.Pending(path))
            for piece in pieces:
                if isinstance(piece, bytes):
                    pending[-1].file.write(piece)
                else:
                    piece.tofile(pending[-1].file)
            for file in pending:
                file.finish()
            if plan.tensors and data_path.exists():
                path.unlink(missing_ok=True)
            for file in pending:
                file.rename()
        except ValueError as error:  # onnx_ir's answer to a data file that it does not trust
            raise InputError(f"{path}: weights cannot be read: {error}") from None
        finally:
            _files.discard_all(pending)
        _files.sync_folder(path.parent)
    kept = {data_path} if plan.tensors else set()
    for old in old_data:
        if old not in kept and (in_place or not _is_any(old, sources)) and not _files.mentioned_by_others(old, path):
            old.unlink(missing_ok=True)
    return [path, *kept]


def to_bytes(graph: ir.Model) -> bytes:
    """The model as the bytes of one .onnx file, all weights inline, exactly as :func:`save` would write it.

    Raises:
        OutputError: that would be more than protobuf's 2 GB.
    """
    with _reading.paused_gc():
        if sum(map(nbytes_of, parts(graph))) > _LIMIT:
            raise OutputError("the model is larger than the 2 GB that fit into one ONNX file")
        pieces = Writer(graph, {}).pieces()
        return b"".join(piece if isinstance(piece, bytes) else piece.tobytes() for piece in pieces)


def digest(graph: ir.Model) -> bytes:
    """A hash of the bytes that `to_bytes` would give, of models that are larger than these may be, too. Reads all weights."""
    with _reading.paused_gc():
        made = hashlib.blake2b()
        for piece in Writer(graph, {}).pieces():
            made.update(piece if isinstance(piece, bytes) else piece.tobytes())
        return made.digest()


def looks_like_onnx(path: os.PathLike | str) -> bool:
    """Whether a file is an ONNX model, whatever its name."""
    try:
        _reading.read_proto(Path(path))
    except InputError:
        return False
    return True


class Plan:
    """Which tensors go to the data file, and where in it."""

    def __init__(self, graph: ir.Model, tensors: list[ir.TensorProtocol], location: str, *, everything: bool) -> None:
        self.places: dict[int, tuple[str, int, int]] = {}
        self.tensors: list[tuple[int, ir.TensorProtocol]] = []
        own_file = carried(graph).external or any(kind_of(t) is ir.ExternalTensor for t in tensors)
        if not own_file and not everything:
            # Known before anything is turned into bytes: no 2 GB of bytes are made to find out.
            everything = sum(map(nbytes_of, tensors)) > _LIMIT
        if not own_file and not everything:
            return
        initializers = {id(v.const_value) for g in iter_graphs(graph) for v in g.initializers.values()}
        end = 0
        same: dict[tuple[str, int, int], tuple[str, int, int]] = {}
        for tensor in tensors:
            if id(tensor) in self.places or not _goes_out(tensor, own_file, everything, initializers):
                continue
            length = tensor.nbytes
            key = (tensor.path, tensor.offset or 0, length) if kind_of(tensor) is ir.ExternalTensor else None
            if key in same:  # weights that share bytes in the input share them in the output
                self.places[id(tensor)] = same[key]
                continue
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = offset + length
            self.places[id(tensor)] = (location, offset, length)
            self.tensors.append((offset, tensor))
            if key is not None:
                same[key] = self.places[id(tensor)]

    def write(self, file: BinaryIO) -> None:
        """The data file."""
        end = 0
        for offset, tensor in self.tensors:
            file.write(bytes(offset - end))
            if hasattr(tensor, "tofile"):
                tensor.tofile(file)
            else:
                file.write(tensor.tobytes())
            end = offset + tensor.nbytes


def _goes_out(tensor: ir.TensorProtocol, own_file: bool, everything: bool, initializers: set[int]) -> bool:
    if kind_of(tensor) is ir.ExternalTensor:
        return True
    kind = kind_of(tensor)
    # What was inline in a file that also had external data stays inline; what a pass made (kind None) joins the data.
    if not everything and not (own_file and kind is None):
        return False
    return kind is not ir.StringTensor and id(tensor) in initializers and tensor.nbytes >= _EXTERNAL_FROM


def parts(graph: ir.Model) -> Iterator[ir.TensorProtocol]:
    """The tensors of a model as they are written: of a sparse one, its values and indices."""
    for tensor, _ in _reading.tensors_of(iter_graphs(graph)):
        if kind_of(tensor) is SparseTensor:
            yield from (tensor.values, tensor.indices)
        else:
            yield tensor


def _sources(model: Model, tensors: Iterable[ir.TensorProtocol]) -> list[Path]:
    """Every file that the model was or will be read from."""
    paths = {Path(t.path): None for t in tensors if kind_of(t) is ir.ExternalTensor}
    paths.update(dict.fromkeys(model.stamps))
    if model.path is not None:
        paths[model.path] = None
    return list(paths)


def _check_sources(model: Model) -> None:
    for path, stamp in model.stamps.items():
        # The .onnx itself is in memory, or held open.
        if path != model.path and file_stamp(path) != stamp:
            raise InputError(f"{path}: these weights were changed or removed since the model was loaded")


def _data_names(path: Path) -> list[Path]:
    """Data files beside a model that bear a name save() gives: NAME.data, NAME.1.data, ..."""
    names = []
    for number in range(100):
        name = path.with_name(f"{path.name}.{number}.data" if number else f"{path.name}.data")
        if name.exists():
            names.append(name)
    return names


def _free_data_name(path: Path, sources: list[Path]) -> Path:
    """A name for the data file that no other model refers to, and that is no file of the input."""
    number = 0
    while True:
        name = path.with_name(f"{path.name}.{number}.data" if number else f"{path.name}.data")
        if not os.path.lexists(name):
            return name
        if name.is_file() and not _is_any(name, sources) and not _files.mentioned_by_others(name, path):
            return name
        number += 1


def _is_any(path: Path, others: Iterable[Path]) -> bool:
    return any(_files.same_file(path, other) for other in others)


def _remarks(proto: onnx.ModelProto) -> list[str]:
    notes = []
    if proto.ir_version > onnx.IR_VERSION:
        notes.append(f"IR version {proto.ir_version} is newer than the installed onnx knows ({onnx.IR_VERSION})")
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > onnx.defs.onnx_opset_version():
            newest = onnx.defs.onnx_opset_version()
            notes.append(f"opset {opset.version} is newer than the installed onnx knows ({newest})")
    if proto.training_info:
        notes.append("training information is carried along as it is; it may refer to what passes remove")
    names = [tensor.name for tensor in proto.graph.initializer]
    if len(set(names)) != len(names):
        twice = next(name for name in dict.fromkeys(names) if names.count(name) > 1)
        notes.append(f"initializer '{twice}' is given more than once: the last one counts, as in ONNX Runtime")
    return notes


def _unified(opsets: Iterable[onnx.OperatorSetIdProto], where: str, notes: list[str]) -> dict[str, int]:
    """One version a domain, '' and 'ai.onnx' being the same domain (IR specification, "Operator Sets").

    Of versions that contradict each other the last counts: so ONNX Runtime (1.32) does, by experiment with an operator
    that two versions define differently, in every order and spelling.
    """
    versions: dict[str, int] = {}
    for opset in opsets:
        domain = "" if opset.domain == "ai.onnx" else opset.domain
        if versions.get(domain, opset.version) != opset.version:
            notes.append(
                f"{where} imports opset {versions[domain]} and {opset.version} of '{domain or 'ai.onnx'}': "
                "the last one counts, as in ONNX Runtime"
            )
        versions[domain] = opset.version
    return versions


def _documented_initializers(graph: onnx.GraphProto) -> list[str]:
    """Initializers that the file also describes as values, which it need not."""
    described = {info.name for info in graph.value_info}
    return [t.name for t in graph.initializer if t.name in described] if described else []
