"""Samples: the input sets on which a candidate is compared with its reference, and how the user's own are read.

A samples file is a numpy ``.npz``: one array an input, under the input's name, one sample a file. A folder of such
files is a set of samples, in the order of their names. A key ``label`` or ``labels`` is for those who measure quality
and is passed over here; every other name that is not an input's is an error, because it is most often a misspelt one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.errors import InputError

#: Keys of a samples file that are never inputs (unless an input really has that name).
LABEL_KEYS = frozenset({"label", "labels"})


@dataclass(frozen=True)
class Sample:
    """One set of inputs.

    feeds: input name -> array of the input's dtype (strings: object), or a list of arrays for a sequence input.
    origin: where it is from, for people: "user: faces.npz", "synthesized: normal, batch=2, seq=17".
    usual: of a size at which such a model is used, where others are shorter or smaller: the one to time on.
    """

    feeds: dict[str, np.ndarray]
    origin: str
    usual: bool = False

    def shapes(self) -> dict[str, list[int]]:
        """Input name -> shape, as run."""
        return {name: list(np.shape(value)) for name, value in self.feeds.items() if not isinstance(value, list)}


def for_timing(samples: Sequence[Sample]) -> list[Sample]:
    """The sample to time on, and the smallest one where that is another size; the first alone where none is `usual`.

    What a rewrite gains may depend on the size, and so may whether it gains at all.
    """
    usual = next((s for s in samples if s.usual), None)
    if usual is None:
        return list(samples[:1])
    smallest = min(samples, key=_elements)
    return [usual, smallest] if _elements(smallest) < _elements(usual) else [usual]


def _elements(sample: Sample) -> int:
    arrays = [a for value in sample.feeds.values() for a in (value if isinstance(value, list) else [value])]
    return sum(int(np.size(a)) for a in arrays)


def fed_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that a caller must feed: those without a default (an initializer of the same name)."""
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def load_samples(path: Path, model: ir.Model) -> list[Sample]:
    """The samples in an ``.npz`` file or in a folder of them, checked against the inputs of the model.

    Where they differ in size, the largest is marked as the one to time on.

    Raises InputError, naming the file, the input, what was expected and what was found: no such file, no ``.npz`` in
    the folder, not an ``.npz``, pickled content, an unknown name, an input without an array, a dtype that is not
    exactly the input's (nothing is cast: a silent cast would verify another input than the one given), a rank or a
    fixed dimension that differs.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise InputError(f"{path}: no .npz file in this folder of samples")
    elif path.is_file():
        files = [path]
    else:
        raise InputError(f"{path}: no such samples file or folder")
    samples = [Sample(read_sample(file, model), f"user: {file.name}") for file in files]
    largest = max(samples, key=_elements)
    differ = any(_elements(s) != _elements(largest) for s in samples)
    return [replace(s, usual=differ and s is largest) for s in samples]


def read_sample(file: Path, model: ir.Model) -> dict[str, np.ndarray]:
    """The feeds in an ``.npz`` file; raises InputError as `load_samples` does."""
    archive = _open(file)
    with archive:
        return check_feeds(str(file), ((name, lambda name=name: _array(file, archive, name)) for name in archive.files), model)


def _open(file: Path) -> np.lib.npyio.NpzFile:
    """An ``.npz`` file whose arrays are read one by one; raises InputError where it is none."""
    try:
        archive = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: not a readable .npz file ({_line(error)})") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError(f"{file}: not an .npz file (a single array has no input's name; save it with numpy.savez)")
    return archive


def _array(file: Path, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: input '{name}' cannot be read ({_line(error)})") from error


def check_feeds(where: str, arrays: Iterable[tuple[str, Callable[[], np.ndarray]]], model: ir.Model) -> dict[str, np.ndarray]:
    """Feeds out of arrays by name, checked against the inputs of the model; raises InputError as `load_samples` does.

    where: what an error names. arrays: each with how to read it; those of labels are not read.
    """
    inputs = {v.name: v for v in model.graph.inputs}
    needed = [v.name for v in fed_inputs(model)]
    feeds: dict[str, np.ndarray] = {}
    for name, read in arrays:
        if name not in inputs:
            if name in LABEL_KEYS:
                continue
            raise InputError(f"{where}: the model has no input '{name}' (its inputs: {', '.join(needed) or 'none'})")
        feeds[name] = check_array(where, inputs[name], read())
    missing = [name for name in needed if name not in feeds]
    if missing:
        raise InputError(f"{where}: no array for input {', '.join(repr(m) for m in missing)}")
    return feeds


def check_array(where: str, value: ir.Value, array: np.ndarray) -> np.ndarray:
    """The array as the runtime takes it, or InputError where it is not what the input declares."""
    if not isinstance(value.type, ir.TensorType) and value.type is not None:
        raise InputError(f"{where}: input '{value.name}' is {value.type}, which a samples file cannot hold")
    wanted = value.dtype
    if wanted == ir.DataType.STRING:
        if array.dtype.kind not in "US":
            raise InputError(f"{where}: input '{value.name}': expected strings, found {array.dtype}")
        array = (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array).astype(object)
    elif wanted is not None:
        expected = wanted.numpy()
        if array.dtype.kind == "V" and array.dtype.itemsize == expected.itemsize:
            array = array.view(expected)  # numpy writes bfloat16 and the 8-bit floats as raw bytes
        if array.dtype != expected:
            raise InputError(f"{where}: input '{value.name}': expected {expected}, found {array.dtype}")
    if value.shape is not None:
        if array.ndim != len(value.shape):
            raise InputError(
                f"{where}: input '{value.name}': expected {len(value.shape)} dimensions "
                f"{_dims(value.shape)}, found {array.ndim} {list(array.shape)}"
            )
        for axis, (declared, found) in enumerate(zip(value.shape, array.shape, strict=True)):
            if isinstance(declared, int) and declared >= 0 and declared != found:
                raise InputError(
                    f"{where}: input '{value.name}': expected {declared} in dimension {axis} of "
                    f"{_dims(value.shape)}, found {list(array.shape)}"
                )
    return array


def _dims(shape: ir.Shape) -> str:
    return "[" + ", ".join(str(d) if isinstance(d, int) else str(d.value or "?") for d in shape) + "]"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
