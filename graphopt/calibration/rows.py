"""Second moments of the rows that products multiply their weights with; of convolutions, of patches."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.calibration.collect import LIMIT, Job, Shown, find
from graphopt.calibration.sources import Source
from graphopt.errors import CalibrationError
from graphopt.reporting.progress import Progress
from graphopt.rewriting.rows import Rows

#: Rows that are looked at of each sample, drawn at random.
PLACES = 512
#: Bytes of moments that are held at a time, about.
_HELD = 256 << 20


def row_moments(
    model: ir.Model, wanted: Iterable[Rows], source: Source, *, places: int = PLACES, limit: int = LIMIT, threads: int = 0,
    provider: str = "cpu", shown: Shown | None = None, folder: Path | None = None,
) -> Iterator[tuple[Rows, np.ndarray | None]]:  # fmt: skip
    """Of each the mean of r^T r over rows r, [groups, length, length] float64; None where a value is not finite.

    They come as many at a time as fit into memory, in the order of the graph within these; each such part takes a pass over
    the samples. Let go of one before the next is asked for.
    """
    batch: list[Rows] = []
    held = 0
    for rows in dict.fromkeys(wanted):
        size = 8 * rows.groups * rows.length**2
        if batch and held + size > _HELD:
            yield from _batch(model, batch, source, places, limit, threads, provider, shown, folder)
            batch, held = [], 0
        batch.append(rows)
        held += size
    if batch:
        yield from _batch(model, batch, source, places, limit, threads, provider, shown, folder)


def _batch(
    model: ir.Model, batch: list[Rows], source: Source, places: int, limit: int, threads: int, provider: str, shown: Shown | None,
    folder: Path | None,
) -> Iterator[tuple[Rows, np.ndarray | None]]:  # fmt: skip
    values = find(model, list(dict.fromkeys(rows.value for rows in batch)))
    fed = [name for name, value in values.items() if value.is_graph_input()]
    inner = [name for name, value in values.items() if not value.is_graph_input()]
    observers = {name: _Several([_Moment(rows, places) for rows in batch if rows.value == name]) for name in values}
    with tempfile.TemporaryDirectory(prefix="graphopt-calibration-", dir=folder) as work:
        Job(source, observers, limit, threads, provider, shown or Progress(quiet=True).stage).carry_out(model, fed, inner, Path(work))
    found = {moment.rows: moment for observer in observers.values() for moment in observer.moments}
    for rows in batch:
        moment = found.pop(rows)
        yield rows, None if moment.faulty or not moment.count else moment.mean


class _Several:
    """What is kept of one tensor that several products read in different ways."""

    def __init__(self, moments: list[_Moment]) -> None:
        self.moments = moments

    def add(self, array: np.ndarray, origin: str) -> None:
        for moment in self.moments:
            moment.add(array)


class _Moment:
    """A running mean over rows."""

    def __init__(self, rows: Rows, places: int) -> None:
        self.rows, self._places = rows, places
        self.mean = np.zeros((rows.groups, rows.length, rows.length))
        self.count = 0
        self.faulty = False
        self._random = np.random.default_rng(zlib.crc32(rows.value.encode()))

    def add(self, array: np.ndarray) -> None:
        if not array.size:
            return
        seen = self._rows(array).astype(np.float32, copy=False)  # [n, groups, length]
        if not np.isfinite(seen).all():
            self.faulty = True
            return
        self.mean *= self.count / (self.count + len(seen))
        self.count += len(seen)
        by_group = seen.transpose(1, 0, 2)
        self.mean += (by_group.transpose(0, 2, 1) @ by_group) / np.float32(self.count)

    def _rows(self, array: np.ndarray) -> np.ndarray:
        rows = self.rows
        if not rows.kernel:
            if array.shape[-1] != rows.length:
                raise CalibrationError(f"tensor {rows.value!r} has {array.shape[-1]} features, where its product reads {rows.length}")
            flat = array.reshape(-1, rows.length)
            return flat[self._chosen(len(flat))][:, None]
        axes = len(rows.kernel)
        padded = np.pad(array, [(0, 0), (0, 0), *zip(rows.pads[:axes], rows.pads[axes:], strict=True)])
        reach = tuple((k - 1) * d + 1 for k, d in zip(rows.kernel, rows.dilations, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + axes)))
        windows = windows[(..., *(slice(None, None, s) for s in rows.strides), *(slice(None, None, d) for d in rows.dilations))]
        windows = np.moveaxis(windows, 1, 1 + axes)  # [n, *places, channels, *kernel], a view
        chosen = self._chosen(int(np.prod(windows.shape[: 1 + axes])))
        taken = windows[np.unravel_index(chosen, windows.shape[: 1 + axes])]
        return taken.reshape(len(chosen), rows.groups, rows.length)

    def _chosen(self, count: int) -> np.ndarray:
        if count <= self._places:
            return np.arange(count)
        return self._random.choice(count, self._places, replace=False)
