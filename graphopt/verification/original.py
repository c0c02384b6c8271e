"""The original: what a candidate is compared with, what it answers to samples, and how far it is from itself.

That last is what a candidate may be off by without being wrong:

(a) *runtime noise*: its answer with the runtime's optimizations on, which fuse, reorder and change layouts;
(b) *rounding noise*: its answer when its floats are changed by about one rounding (see `perturb`), or computed exactly.

(b) is a property of the function that the model computes; (a) is one of the runtime, which may itself be wrong. So (a)
counts only as far as (b) makes it plausible: up to RUNTIME_FACTOR times (b), where (b) is taken to be at least a few
eps. A runtime that answers nonsense with its optimizations on therefore excuses no candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.verification import informative, perturb
from graphopt.verification.coverage import Coverage
from graphopt.verification.metrics import CAP, difference, eps_of, is_float, leaves, per_channel, scale_of
from graphopt.verification.samples import Sample

#: How many times the rounding noise the runtime's own noise may be and still pass for rounding.
RUNTIME_FACTOR = 100.0
#: Rounding noise is taken to be at least this many eps of the output's scale.
_LEAST_EPS = 4.0
_CACHE_BYTES = 256_000_000

#: Ways of running an original: as it is; with the runtime's optimizations; with about one rounding of noise on its own
#: floats; in more bits, so that rounding hardly counts.
Way = Literal["off", "on", "shaken", "exact"]


@dataclass(frozen=True)
class Noise:
    """How far one array of an output is from itself on one sample.

    absolute: float64, broadcasts to the array, what (a) and (b) come to together; flips: part of the elements of an
    integer, bool or string array that change; rounding, runtime: the largest of (b) and (a) over the scale (runtime as
    measured, before it is limited); unstable: shape or places of NaN change, so that nothing can be compared.
    """

    absolute: np.ndarray | float = 0.0
    flips: float = 0.0
    rounding: float = 0.0
    runtime: float = 0.0
    unstable: bool = False


@dataclass
class _Record:
    sample: Sample
    outputs: dict[str, Any] | None = None
    optimized: dict[str, Any] | None = None
    noise: dict[str, list[Noise]] | None = None
    error: str = ""


@dataclass
class _Moved:
    """Other answers to one sample: with floats changed by a rounding, computed in more bits, and the same again."""

    changed: Mapping[str, Any] | None = None
    exact: Mapping[str, Any] | None = None
    repeat: Mapping[str, Any] | None = None


class Original:
    """One original model, however it is run. Answers are kept for the samples they were asked for, up to a bound, which
    makes a bisection cheap.

    A subclass says how it is run (`run_as`), in what ways (`ways`), and names `output_names`; and as far as it knows them
    `ranges` (output -> the fixed range it is bound to), `independent` (outputs that do not depend on the inputs' values)
    and `eps`, that of the coarsest floats that it computes in.
    """

    output_names: list[str]

    def __init__(self, *, seed: int = 0):
        """seed: of the noise."""
        self.seed = seed
        self.optimized_error = ""
        self.ranges: dict[str, tuple[float, float]] = {}
        self.independent: set[str] = set()
        self.eps = eps_of(np.dtype(np.float32))
        self._random: set[tuple[str, int]] = set()  # (output, array in it) that differ when the same is run again
        self._records: dict[int, _Record] = {}
        self._kept = 0

    # --- what a subclass says -----------------------------------------------------------------------------------

    def run_as(self, way: Way, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs for feeds, run in one of its ways. Raises GraphoptError, one line, where it does not run."""
        raise NotImplementedError(f"{type(self).__name__}.run_as")

    def has(self, way: Way) -> bool:
        """Whether there is such a way."""
        return way == "off"

    def coverage(self, samples: Sequence[Sample]) -> Coverage:
        """How much of the graph the samples exercise."""
        return Coverage(note="not measured")

    def close(self) -> None:
        """Lets go of what running keeps in memory. The next run makes it anew."""

    # --- what it answers ----------------------------------------------------------------------------------------

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs for feeds, as it is. Raises GraphoptError, one line, where the model does not run."""
        return self.run_as("off", feeds)

    def outputs(self, sample: Sample) -> dict[str, Any]:
        """The outputs on a sample, as it is. Raises GraphoptError where the model does not run on it."""
        record = self._record(sample)
        if record.error:
            raise GraphoptError(record.error)
        if record.outputs is None:
            try:
                outputs = self.run(sample.feeds)
            except GraphoptError as error:
                record.error = str(error)
                raise
            if not self._keep(outputs):
                return outputs
            record.outputs = outputs
        return record.outputs

    def optimized(self, sample: Sample) -> dict[str, Any] | None:
        """The outputs with the runtime's optimizations on; None where there is no such way, or, with `optimized_error`
        set, where it fails with them."""
        record = self._record(sample)
        if record.optimized is None:
            if self.optimized_error or not self.has("on"):
                return None
            try:
                record.optimized = self.run_as("on", sample.feeds)
            except GraphoptError as error:
                self.optimized_error = str(error)
                return None
            self._keep(record.optimized)
        return record.optimized

    def noise(self, sample: Sample) -> dict[str, list[Noise]]:
        """The model's own noise on a sample: output -> one figure for each of its arrays (see `metrics.leaves`)."""
        record = self._record(sample)
        if record.noise is None:
            self.prepare([sample])
        return record.noise or {}

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Runs everything that `noise` needs for many samples, one way after the other.

        Samples on which the model does not run are passed over; `outputs` raises for those.
        """
        todo: list[_Record] = []
        for sample in samples:
            record = self._record(sample)
            try:
                self.outputs(sample)
            except GraphoptError:
                continue
            if record.noise is None:
                todo.append(record)
        moved = {id(record): _Moved() for record in todo}
        for number, record in enumerate(todo):
            feeds = perturb.perturbed(record.sample.feeds, self.eps, self.seed + number)
            moved[id(record)].changed = self._quietly("off", feeds) if feeds is not None else None
            # The same again: what differs then is drawn at random or depends on the order of threads.
            if number == 0:
                moved[id(record)].repeat = self._quietly("off", record.sample.feeds)
                self._find_random(record, moved[id(record)].repeat)
        if any(m.changed is None for m in moved.values()) and self.has("shaken"):
            for record in todo:
                if moved[id(record)].changed is None:
                    moved[id(record)].changed = self._quietly("shaken", record.sample.feeds)
        if self.has("exact"):
            for record in todo:
                moved[id(record)].exact = self._quietly("exact", record.sample.feeds)
        for record in todo:
            optimized = self.optimized(record.sample)
            outputs = self.outputs(record.sample)
            record.noise = {name: self._noise(name, value, optimized, moved[id(record)]) for name, value in outputs.items()}

    def judged(self, samples: Sequence[Sample]) -> list[dict[str, str]]:
        """For each sample, why each output proves nothing on it: output -> reason, "" where it does prove something."""
        answers = [self.outputs(s) for s in samples]
        result = []
        for number, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
            others = [a for other, a in zip(samples, answers, strict=True) if not _same_feeds(other.feeds, sample.feeds)]
            if not any(_alike(answer, o) for o in others):
                probe = self._quietly("off", informative.altered(sample.feeds, self.seed))
                others = [*others, probe] if probe is not None else others
            result.append(informative.judge(answer, others, self.ranges, self.independent))
        return result

    def _record(self, sample: Sample) -> _Record:
        record = self._records.get(id(sample))
        if record is None or record.sample is not sample:
            record = self._records[id(sample)] = _Record(sample)
        return record

    def _find_random(self, record: _Record, repeat: Mapping[str, Any] | None) -> None:
        """Remembers the outputs that a second run moves by more than any order of threads does."""
        if repeat is None:
            return
        for name, value in self.outputs(record.sample).items():
            again = leaves(repeat[name])
            for i, (_, array) in enumerate(leaves(value)):
                other = again[i][1] if i < len(again) else None
                if other is None or other.shape != array.shape:
                    self._random.add((name, i))
                elif is_float(array):
                    gap = difference(other, array)
                    if gap is None or float(gap.max(initial=0.0)) > CAP * scale_of(array):
                        self._random.add((name, i))
                elif np.any(other != array):
                    self._random.add((name, i))

    def _quietly(self, way: Way, feeds: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return self.run_as(way, feeds)
        except GraphoptError:
            return None  # a figure less; that the model runs on the sample itself is known

    def _keep(self, outputs: Mapping[str, Any]) -> bool:
        size = sum(a.nbytes for v in outputs.values() for _, a in leaves(v))
        self._kept += size
        return self._kept <= _CACHE_BYTES

    def _noise(self, name: str, value: Any, optimized: Mapping[str, Any] | None, moved: _Moved) -> list[Noise]:
        span = self.ranges[name][1] - self.ranges[name][0] if name in self.ranges else 0.0
        answers = (optimized, moved.changed, moved.repeat, moved.exact)
        others = [[array for _, array in leaves(o[name])] if o is not None and name in o else None for o in answers]
        return [
            Noise(unstable=True)
            if (name, i) in self._random
            else _leaf_noise(array, [o[i] if o is not None and i < len(o) else None for o in others], span, self.eps)
            for i, (_, array) in enumerate(leaves(value))
        ]


def _leaf_noise(b: np.ndarray, others: Sequence[np.ndarray | None], span: float, eps: float) -> Noise:
    """Noise of one array; others: its values with optimizations on, with floats perturbed, on a second run, and exact."""
    optimized, changed, repeat, exact = (*others, None)[:4]
    mine = [o for o in (changed, repeat) if o is not None]
    if not is_float(b):
        shaped = [o for o in [*mine, optimized, exact] if o is not None and o.shape == b.shape]
        flips = max((np.count_nonzero(o != b) / max(b.size, 1) for o in shaped), default=0.0)
        return Noise(flips=float(flips), unstable=any(o.shape != b.shape for o in mine))
    scale = max(scale_of(b), span)
    gaps = [difference(o, b) if o.shape == b.shape and o.dtype == b.dtype else None for o in mine]
    if any(g is None for g in gaps):
        return Noise(unstable=True)
    floor = _LEAST_EPS * max(eps, eps_of(b.dtype)) * scale
    rounding = np.maximum.reduce([per_channel(g) for g in gaps]) if gaps else np.asarray(0.0)
    own = float(np.max(rounding, initial=0.0))
    plausible = RUNTIME_FACTOR * max(own, floor)
    if exact is not None and is_float(exact) and (gap := difference(exact, b)) is not None:
        # What the original itself misses; but a model may compute another thing in other types, which is no rounding.
        rounding = np.maximum(rounding, np.minimum(per_channel(gap), plausible))
        own = float(np.max(rounding, initial=0.0))
    gap = None
    if optimized is not None and optimized.dtype == b.dtype:
        gap = difference(optimized, b)
    together, measured = rounding, math.nan if optimized is None else math.inf
    if gap is not None:
        measured = float(gap.max(initial=0.0))
        together = np.maximum(rounding, np.minimum(per_channel(gap), plausible))
    return Noise(together, 0.0, own / scale if scale else 0.0, measured / scale if scale else 0.0)


def _same_feeds(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two samples are one: that the outputs are the same then says nothing."""
    return a is b or all(np.array_equal(a.get(name), b.get(name)) for name in a.keys() | b.keys())


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all([x.shape for _, x in leaves(a[n])] == [y.shape for _, y in leaves(b[n])] for n in a)
