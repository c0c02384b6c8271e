"""Where calibration samples come from. They are read one at a time, and again for every pass over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.calibration import stacked
from graphopt.calibration.images import IMAGES, Preprocessing, read_image
from graphopt.errors import CalibrationError, GraphoptError, InputError
from graphopt.metric import load_function
from graphopt.verification.samples import Sample, check_array, check_feeds, fed_inputs

#: Part of the samples that is set aside for evaluation.
EVALUATION_SHARE = 0.2


class Source(ABC):
    """A set of samples that can be gone through as often as needed, in the same order each time.

    Attributes:
        description: where they are from, for people.
        guessed: whether they are made up, so that ranges found on them are guesses.
    """

    description: str = ""
    guessed: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[Sample]:
        """The samples; raises CalibrationError where one cannot be read or does not fit the model."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    def take(self, numbers: frozenset[int]) -> Iterator[Sample]:
        """The samples of those numbers, counted from 0, in order."""
        return (sample for number, sample in enumerate(self) if number in numbers)


@dataclass(frozen=True)
class Part(Source):
    """Some samples of a source, by their numbers."""

    whole: Source
    numbers: tuple[int, ...]

    @property
    def description(self) -> str:  # type: ignore[override]
        return self.whole.description

    @property
    def guessed(self) -> bool:  # type: ignore[override]
        return self.whole.guessed

    def __iter__(self) -> Iterator[Sample]:
        return self.whole.take(frozenset(self.numbers))

    def __len__(self) -> int:
        return len(self.numbers)


def split(source: Source, seed: int, share: float = EVALUATION_SHARE) -> tuple[Part, Part]:
    """A part to calibrate on and one to evaluate on, which have no sample in common; drawn by a seeded generator.

    The first always has a sample where there is any, the second one where there are two.
    """
    count = len(source)
    aside = min(max(1, round(count * share)), max(0, count - 1)) if share > 0 else 0
    chosen = np.random.default_rng(seed).permutation(count)
    return Part(source, tuple(sorted(map(int, chosen[aside:])))), Part(source, tuple(sorted(map(int, chosen[:aside]))))


@dataclass(frozen=True)
class Given(Source):
    """Samples in memory."""

    samples: tuple[Sample, ...]
    description: str = "given samples"
    guessed: bool = False

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


class Files(Source):
    """The samples in files, one or many in each."""

    def __init__(self, path: Path, files: list[Path], count: Callable[[Path], int], read: Callable[[Path], Iterator[Sample]]) -> None:
        """count: how many samples a file has; read: these, one at a time."""
        self.description = str(path)
        self._files, self._count, self._read = files, count, read

    @cached_property
    def _counts(self) -> list[int]:
        with _as_calibration():
            return [self._count(file) for file in self._files]

    def __iter__(self) -> Iterator[Sample]:
        return self.take(frozenset(range(len(self))))

    def __len__(self) -> int:
        return sum(self._counts)

    def take(self, numbers: frozenset[int]) -> Iterator[Sample]:
        first = 0
        for file, count in zip(self._files, self._counts, strict=True):
            if any(number in numbers for number in range(first, first + count)):
                yield from self._of_file(file, first, numbers)
            first += count

    def _of_file(self, file: Path, first: int, numbers: frozenset[int]) -> Iterator[Sample]:
        samples = self._read(file)
        number = first
        while True:
            with _as_calibration():
                sample = next(samples, None)
            if sample is None:
                return
            if number in numbers:
                yield sample
            number += 1


class Called(Source):
    """What a function, or anything else that can be iterated over again and again, gives.

    Each item is feeds by input name, or one array for a model with one input.
    """

    def __init__(self, begin: Callable[[], Iterable[Any]], description: str, model: ir.Model) -> None:
        self.description = description
        self._begin, self._model = begin, model

    def __iter__(self) -> Iterator[Sample]:
        number = 0
        items = self._guarded(lambda: iter(self._begin()))
        while True:
            number += 1
            item = self._guarded(lambda: next(items, _END))
            if item is _END:
                return
            yield self._sample(item, number)

    @cached_property
    def _length(self) -> int:
        # Not len() of what is given: it may be a data set of which an iteration gives batches.
        return sum(1 for _ in self)

    def __len__(self) -> int:
        return self._length

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except GraphoptError:
            raise
        except Exception as error:
            raise CalibrationError(f"{self.description}: {type(error).__name__}: {' '.join(str(error).split())}") from error

    def _sample(self, item: Any, number: int) -> Sample:
        where = f"{self.description}, sample {number}"
        needed = fed_inputs(self._model)
        if isinstance(item, np.ndarray) and len(needed) == 1:
            item = {needed[0].name: item}
        if isinstance(item, Sample):
            item = item.feeds
        if not isinstance(item, Mapping):
            raise CalibrationError(f"{where}: expected a mapping from input names to arrays, found {type(item).__name__}")
        with _as_calibration():
            return Sample(check_feeds(where, ((name, lambda a=array: np.asarray(a)) for name, array in item.items()), self._model), where)


_END = object()


class _as_calibration:
    """What is wrong with a sample is the samples' fault, whoever finds it."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, InputError) and not isinstance(error, CalibrationError):
            raise CalibrationError(str(error)) from error


def open_source(
    what: str | Path | Iterable[Any] | Callable[[], Iterable[Any]], model: ir.Model, preprocessing: str | None = None
) -> Source:
    """The samples that somebody points at.

    what: an .npz or .npy file; a folder of such files, or of images with `preprocessing` (a TOML file, or options as in
    "size=224,224;mean=..."; without it the folder's own preprocessing.toml); "MODULE:FUNCTION" or "FILE.py:FUNCTION", a
    function without parameters; such a function itself; or anything that can be iterated over more than once.

    An array with one dimension more than the input holds many samples. Nothing is read yet but names.

    Raises CalibrationError where there is nothing of the kind, OptionError where the preprocessing makes no sense.
    """
    if isinstance(what, Source):
        return what
    if not isinstance(what, str | Path):
        if not callable(what) and iter(what) is what:
            raise CalibrationError("these calibration samples can be gone through only once; give a function that returns them")
        named = getattr(what, "__name__", type(what).__name__)
        return Called(what if callable(what) else lambda: what, f"calibration samples of {named}", model)
    check_place(what)
    path = Path(what)
    if path.is_dir():
        return _folder(path, model, preprocessing)
    if path.is_file():
        return _of_files(path, [path], model, preprocessing)
    return Called(load_function(str(what), "calibration"), f"calibration {what}", model)


def check_place(what: str | Path) -> None:
    """Raises CalibrationError where there is nothing under that name, and it is none of a function's."""
    if not Path(what).exists() and ":" not in str(what):
        raise CalibrationError(f"{what}: no such calibration file or folder")


def _folder(path: Path, model: ir.Model, preprocessing: str | None) -> Source:
    files = sorted(f for f in path.iterdir() if f.is_file())
    kinds = {"arrays": [f for f in files if f.suffix in (".npz", ".npy")], "images": [f for f in files if f.suffix.lower() in IMAGES]}
    if kinds["arrays"] and kinds["images"]:
        raise CalibrationError(f"{path}: holds both arrays (such as {kinds['arrays'][0].name}) and images ({kinds['images'][0].name})")
    if not any(kinds.values()):
        raise CalibrationError(f"{path}: no .npz, .npy or image file in this folder of calibration samples")
    own = path / "preprocessing.toml"
    if kinds["images"] and preprocessing is None and own.is_file():
        preprocessing = str(own)
    return _of_files(path, kinds["arrays"] or kinds["images"], model, preprocessing)


def _of_files(path: Path, files: list[Path], model: ir.Model, preprocessing: str | None) -> Source:
    if files[0].suffix.lower() not in IMAGES:
        return Files(path, files, lambda file: stacked.count(file, model), lambda file: stacked.samples(file, model))
    how = Preprocessing.parse(preprocessing, path)
    value = how.input_of(model)
    how.target_size(value)

    def read(file: Path) -> Iterator[Sample]:
        yield Sample({value.name: check_array(str(file), value, read_image(file, how, value))}, file.name)

    return Files(path, files, lambda _: 1, read)
