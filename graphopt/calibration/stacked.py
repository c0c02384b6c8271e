"""Arrays of many samples in one file: an .npy or .npz whose arrays have one dimension more than the inputs.

Rows are read one by one, from compressed files too, so that a file is never in memory whole.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from graphopt.errors import InputError
from graphopt.verification.samples import LABEL_KEYS, Sample, check_array, check_feeds, fed_inputs, read_sample


def count(file: Path, model: ir.Model) -> int:
    """How many samples a file holds. Raises InputError where it cannot be read."""
    rows = _rows_of(file, model)
    return 1 if rows is None else rows


def samples(file: Path, model: ir.Model) -> Iterator[Sample]:
    """The samples in a file, checked against the inputs of the model. Raises InputError as `load_samples` does."""
    rows = _rows_of(file, model)
    if rows is None:
        yield Sample(_whole(file, model), file.name)
        return
    with contextlib.ExitStack() as stack:
        members = {name: stack.enter_context(_Rows(file, member)) for name, member in _members(file, model).items()}
        for number in range(rows):
            where = f"{file}, row {number}"
            # All are read, also those that turn out unknown: each has its place in its own stream.
            arrays = {name: member.next() for name, member in members.items() if name not in LABEL_KEYS or name in _inputs(model)}
            yield Sample(check_feeds(where, ((n, lambda a=a: a) for n, a in arrays.items()), model), f"{file.name}[{number}]")


def _whole(file: Path, model: ir.Model) -> dict[str, np.ndarray]:
    if file.suffix == ".npz":
        return read_sample(file, model)
    (name,) = _members(file, model)
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: not a readable .npy file ({_line(error)})") from error
    return {name: check_array(str(file), _inputs(model)[name], array)}


def _inputs(model: ir.Model) -> dict[str, ir.Value]:
    return {v.name: v for v in model.graph.inputs}


def _members(file: Path, model: ir.Model) -> dict[str, str | None]:
    """Names of arrays in a file, each with its member in the archive; the array of an .npy is the only input's."""
    if file.suffix == ".npz":
        try:
            with zipfile.ZipFile(file) as archive:
                return {name.removesuffix(".npy"): name for name in archive.namelist()}
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{file}: not a readable .npz file ({_line(error)})") from error
    needed = fed_inputs(model)
    if len(needed) != 1:
        raise InputError(f"{file}: one array, but the model has {len(needed)} inputs; save them by name with numpy.savez")
    return {needed[0].name: None}


def _rows_of(file: Path, model: ir.Model) -> int | None:
    """How many samples are stacked in a file; None where it is one sample."""
    inputs, found = _inputs(model), set()
    for name, member in _members(file, model).items():
        value = inputs.get(name)
        if value is None or value.shape is None:
            continue  # labels; what is unknown is told when the file is read
        with _Rows(file, member) as rows:
            if len(rows.shape) != len(value.shape) + 1:
                return None
            found.add(rows.shape[0])
    return found.pop() if len(found) == 1 else None


class _Rows:
    """One array in a file, read row by row."""

    def __init__(self, file: Path, member: str | None) -> None:
        self.file, self.member = file, member

    def __enter__(self) -> _Rows:
        self._stack = contextlib.ExitStack()
        try:
            if self.member is None:
                self._stream: BinaryIO = self._stack.enter_context(open(self.file, "rb"))
            else:
                archive = self._stack.enter_context(zipfile.ZipFile(self.file))
                self._stream = self._stack.enter_context(archive.open(self.member))  # type: ignore[assignment]
            version = np.lib.format.read_magic(self._stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, fortran, self.dtype = header(self._stream)
            if self.dtype.hasobject:
                raise ValueError("it holds Python objects")
            self._column_major = None
            if fortran and len(self.shape) > 1:  # rows do not lie together in it
                rest = np.frombuffer(self._stream.read(), self.dtype)
                self._column_major = iter(rest.reshape(self.shape, order="F"))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            self._stack.close()
            raise InputError(f"{self._name}: not a readable array ({_line(error)})") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def _name(self) -> str:
        return str(self.file) if self.member is None else f"{self.file}: {self.member}"

    def next(self) -> np.ndarray:
        if self._column_major is not None:
            return np.ascontiguousarray(next(self._column_major))
        shape = self.shape[1:]
        size = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        try:
            data = self._stream.read(size)
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{self._name}: cannot be read ({_line(error)})") from error
        if len(data) != size:
            raise InputError(f"{self._name}: cut off")
        return np.frombuffer(bytearray(data), self.dtype).reshape(shape)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
