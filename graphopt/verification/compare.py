"""The verdict: does a candidate compute what the original computes?

Each sample goes through the candidate twice. With the runtime's optimizations off the graph itself is judged, against
the reference with them off. With the optimizations on it is judged as it will be shipped; there it may agree with the
reference either way, because a fault that the runtime's own optimizations put into the original as well is none of the
candidate's (it is noted).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from graphopt import runtime
from graphopt.budget import OUTPUTS, Budget
from graphopt.errors import GraphoptError, OptionError
from graphopt.settings import Settings
from graphopt.verification.metrics import CAP, NOISE_FACTOR, Leaf, compare, eps_of, identical, is_float, leaves, scale_of
from graphopt.verification.original import RUNTIME_FACTOR, Noise, Original
from graphopt.verification.reference import Reference
from graphopt.verification.samples import Sample

Verdict = Literal["identical", "equivalent", "within-budget", "different", "unverified"]

#: Relative tolerance by the strongest effect in the pipeline, for float32. A lossy candidate is first held to
#: `rounding`: one that passes is equivalent, whatever its passes were allowed to do.
RTOL = {"exact": 1e-5, "rounding": 1e-4, "lossy": 1e-4}


class Runnable(Protocol):
    """A candidate that is no ONNX file: it is run one way only. `run` raises GraphoptError, one line, where it does not."""

    output_names: list[str]

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]: ...


@dataclass
class OutputComparison:
    """How one output compares, the worst over all samples and both ways of running the candidate.

    max_abs: largest |a - b|; max_rel: largest |a - b| relative to the value, with a floor (see `metrics`); cosine: the
    lowest; distance: the largest ||a - b|| / ||b||; flips: the largest part of integer, bool or string elements that
    differ; ok: within what is allowed; reason: why not, or what else there is to know, "" for nothing; broken: not ok in a
    way that no budget pays for (shape, type, NaN, or it does not run).
    """

    name: str
    max_abs: float = 0.0
    max_rel: float = 0.0
    cosine: float = 1.0
    ok: bool = True
    reason: str = ""
    distance: float = 0.0
    flips: float = 0.0
    broken: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: numbers that JSON lacks (infinity) are None."""
        numbers = {k: getattr(self, k) for k in ("max_abs", "max_rel", "cosine", "distance", "flips")}
        clean = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        return {"name": self.name, **clean, "ok": self.ok, "reason": self.reason}


@dataclass
class Verification:
    """What verification says.

    verdict: "identical" (all outputs bit for bit, optimizations off), "equivalent" (within rounding), "within-budget"
    (lossy, within the budget), "different", or "unverified" (no sample on which the reference runs proves anything);
    samples: how many were compared; sizes: input -> shape, once for each distinct set; informative: samples that prove
    something; exercised: part of the graph that the samples exercise, None where that was not measured.
    """

    verdict: Verdict
    samples: int = 0
    sizes: list[dict[str, list[int]]] = field(default_factory=list)
    outputs: list[OutputComparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    informative: int = 0
    exercised: float | None = None
    coverage: dict[str, Any] | None = None

    @property
    def reason(self) -> str | None:
        """What is wrong with a candidate that is different; None for another verdict."""
        if self.verdict != "different":
            return None
        wrong = [f"output {o.name!r}: {o.reason}" for o in self.outputs if not o.ok]
        return "; ".join(wrong) or "; ".join(self.notes) or "the outputs differ"

    @property
    def over_budget(self) -> bool:
        """Whether all that is wrong is that a lossy candidate is further away than its budget."""
        wrong = [o for o in self.outputs if not o.ok]
        return self.verdict == "different" and bool(wrong) and not any(o.broken for o in wrong)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "verdict": self.verdict, "samples": self.samples, "sizes": self.sizes,
            "outputs": [o.to_dict() for o in self.outputs], "notes": self.notes, "informative": self.informative,
            "exercised": self.exercised, "coverage": self.coverage, "over_budget": self.over_budget,
        }  # fmt: skip


def verify(
    original: str | os.PathLike | bytes | None,
    candidate: str | os.PathLike | bytes | Runnable,
    samples: Sequence[Sample],
    *,
    effect: str = "rounding",
    tolerance: float | None = None,
    budget: Budget | float | None = None,
    threads: int = 0,
    provider: str = "cpu",
    reference: Original | None = None,
    coverage: bool = True,
    settings: Settings | None = None,
) -> Verification:
    """Compares a candidate with the original on samples.

    original, candidate: ONNX files or the bytes of such, the candidate also something else that runs; effect: the
    strongest effect of the passes that made the candidate; tolerance: the relative tolerance for floats instead of the
    one that effect and noise give; budget: for lossy ones, instead of `budget.OUTPUTS`; reference: one made before of the same
    original, whose answers are used again, or an original that is no ONNX file (`original` is None then); coverage:
    whether to measure how much of the graph the samples exercise; settings: of the candidate's session with the
    runtime's optimizations on, where it is to be served with others than plain ones.

    Integers, bools and strings must be equal, unless the reference itself changes some under rounding: then as large a
    part as NOISE_FACTOR times that may differ. Raises OptionError for an unknown effect or a tolerance or budget below
    0, InputError where the original is no model, and ProviderError where the provider is missing. An original that the
    runtime does not run is "unverified", with its reason.
    """
    if effect not in RTOL:
        raise OptionError(f"effect '{effect}' is none of {', '.join(RTOL)}")
    if tolerance is not None and not tolerance >= 0:
        raise OptionError(f"tolerance must be 0 or more, not {tolerance}")
    accepted = OUTPUTS if budget is None else Budget.of(budget)
    mine = reference is None
    if reference is None:
        if original is None:
            raise ValueError("either an original or a reference must be given")
        reference = Reference(original, threads=threads, provider=provider)
    try:
        job = _Job(reference, candidate, effect, tolerance, accepted, threads, provider, settings)
        return job.run(list(samples), coverage)
    finally:
        if mine:
            reference.close()


class _Job:
    def __init__(self, reference: Original, candidate, effect, tolerance, budget, threads, provider, settings):
        self.reference, self.candidate = reference, candidate
        self.effect, self.tolerance, self.budget = effect, tolerance, budget
        self.threads, self.provider, self.settings = threads, provider, settings
        self.result = Verification("unverified")
        self.outputs = {name: OutputComparison(name) for name in reference.output_names}
        self.identical, self.rounding = True, True  # all bits; all within rounding
        self.compared: set[str] = set()
        self.usual: dict[tuple[str, int], float] = {}

    def run(self, samples: list[Sample], coverage: bool) -> Verification:
        result = self.result
        result.outputs = list(self.outputs.values())
        if not samples:
            result.notes.append("no samples: nothing was compared; give some with --samples")
            return result
        usable, failed = [], []
        for sample in samples:
            try:
                answer = self.reference.outputs(sample)
            except GraphoptError as error:
                failed.append(f"the original does not run on a sample ({sample.origin}): {error}")
                continue
            usable.append(sample)
            for name, value in answer.items():
                for i, (_, array) in enumerate(leaves(value)):
                    self.usual[name, i] = max(self.usual.get((name, i), 0.0), scale_of(array))
        result.notes += failed[:3] + ([f"and on {len(failed) - 3} more"] if len(failed) > 3 else [])
        if not usable:
            return result
        self.reference.prepare(usable)
        judged = self.reference.judged(usable)
        result.samples = len(usable)
        result.informative = sum("" in reasons.values() or not reasons for reasons in judged)
        result.sizes = _distinct([s.shapes() for s in usable])
        self._still(judged)
        if coverage:
            measured = self.reference.coverage(usable)
            result.coverage, result.exercised = measured.to_dict(), measured.exercised
            if measured.note:
                result.notes.append(f"coverage {measured.note}")
            if never := measured.never_run:
                more = f" and {len(never) - 3} more" if len(never) > 3 else ""
                result.notes.append(f"no sample takes these branches: {', '.join(never[:3])}{more}")
        self.reference.close()  # the candidate's session is the only one in memory
        if isinstance(self.candidate, str | bytes | os.PathLike):
            if self._pass(usable, optimize=False):
                self._pass(usable, optimize=True)
        else:
            self._run(usable, self.candidate.run, list(self.candidate.output_names), "", False)
        self._conclude()
        return result

    def _still(self, judged: list[dict[str, str]]) -> None:
        """Notes on outputs that prove nothing on any sample."""
        for name in self.outputs:
            reasons = [j.get(name, "") for j in judged]
            if reasons and all(reasons):
                self.result.notes.append(f"output '{name}' proves nothing on these samples: {reasons[0]}")

    def _pass(self, samples: list[Sample], *, optimize: bool) -> bool:
        """Runs the candidate one way over all samples. False where it is different beyond repair."""
        how = " with the runtime's optimizations" if optimize else ""
        try:
            settings = self.settings if optimize else None
            threads = self.threads if settings is None else settings.threads
            session = runtime.session(self.candidate, optimize=optimize, threads=threads, provider=self.provider, settings=settings)
        except GraphoptError as error:
            return self._broken(f"the candidate does not load{how}: {error}", optimize)
        names = [o.name for o in session.get_outputs()]
        return self._run(samples, lambda feeds: runtime.run(session, feeds), names, how, optimize)

    def _run(self, samples: list[Sample], run: Callable[[Mapping[str, Any]], Mapping[str, Any]], names: list[str], how: str,
             optimize: bool) -> bool:  # fmt: skip
        if names != self.reference.output_names:
            return self._broken(f"outputs are {names}, not {self.reference.output_names}", False)
        for sample in samples:
            expected = self.reference.outputs(sample)
            try:
                found = run(sample.feeds)
            except GraphoptError as error:
                return self._broken(f"the candidate does not run{how} on a sample ({sample.origin}): {error}", optimize)
            fallback = self.reference.optimized(sample) if optimize else None
            noise = self.reference.noise(sample)
            for name in names:
                self._output(name, found[name], expected[name], fallback[name] if fallback else None, noise[name], how)
        return True

    def _broken(self, reason: str, optimize: bool) -> bool:
        if optimize and self.reference.optimized_error:
            self.result.notes.append(f"neither the original nor the candidate runs with the runtime's optimizations ({reason})")
            return True
        self.identical = self.rounding = False
        self.result.notes.append(reason)
        for output in self.outputs.values():
            output.ok, output.broken, output.reason = False, True, output.reason or reason
        return False

    def _output(self, name: str, found: Any, expected: Any, fallback: Any, noise: list[Noise], how: str) -> None:
        record = self.outputs[name]
        ours, theirs = leaves(found), leaves(expected)
        if [p for p, _ in ours] != [p for p, _ in theirs]:
            self._fail(record, f"the structure of the output{how} differs from the reference's", True)
            return
        other = [a for _, a in leaves(fallback)] if fallback is not None else []
        for i, ((_, a), (_, b)) in enumerate(zip(ours, theirs, strict=True)):
            if noise[i].unstable and a.dtype == b.dtype:
                record.reason = record.reason or "not compared on a sample: the reference's own shape or NaN change there"
                self._note(f"output '{name}' changes its shape, or where it is NaN, in the original from run to run")
                self.identical = False
                continue
            self.compared.add(name)
            if not how and not identical(a, b):
                self.identical = False
            self._leaf(record, a, b, other[i] if i < len(other) else None, noise[i], (name, i), how)

    def _leaf(self, record: OutputComparison, a, b, fallback, noise: Noise, key: tuple[str, int], how: str) -> None:
        leaf = self._compare(a, b, noise, key, how)
        ok = self._within(leaf, noise)
        if noise.rounding > CAP and self.tolerance is None:
            self._note(
                f"output '{record.name}': one rounding of the inputs moves the original's own answer by {noise.rounding:.2g} "
                "of its scale, so it is compared that loosely"
            )
        # Only where the runtime changes the original by more than rounding can explain is its answer another standard.
        wrong = noise.runtime > RUNTIME_FACTOR * max(noise.rounding, 4 * self.reference.eps)
        if how and not ok and wrong and fallback is not None:
            second = self._compare(a, fallback, noise, key, how)
            if self._within(second, noise):
                self._note(
                    f"output '{record.name}': the runtime's own optimizations change the original by {noise.runtime:.2g} "
                    "of its scale; the candidate agrees with that"
                )
                leaf, ok = second, True
        record.max_abs, record.max_rel = max(record.max_abs, leaf.max_abs), max(record.max_rel, leaf.max_rel)
        record.distance, record.flips = max(record.distance, leaf.distance), max(record.flips, leaf.flips)
        record.cosine = min(record.cosine, leaf.cosine)
        if leaf.flips and ok:
            self._note(
                f"output '{record.name}': {leaf.flips:.2%} of its elements differ, and {noise.flips:.2%} do in the original "
                "itself under rounding"
            )
        if not ok:
            self.rounding = False
            broken = self.effect != "lossy" or leaf.fault != ""
            if broken or not self.budget.allows(leaf.distance, leaf.cosine, leaf.flips):
                self._fail(record, leaf.fault + how if leaf.fault else self._why(leaf, how), broken)

    def _compare(self, a: np.ndarray, b: np.ndarray, noise: Noise, key: tuple[str, int], how: str) -> Leaf:
        span = self.reference.ranges.get(key[0])
        eps = max(self.reference.eps, eps_of(b.dtype))
        if self.tolerance is not None:
            rtol, allowed = self.tolerance, 0.0
        else:
            # What runs optimized is reordered by the runtime, whatever the passes were.
            rtol, allowed = max(RTOL["rounding" if how else self.effect], 4 * eps), noise.absolute
        width = span[1] - span[0] if span and is_float(b) else 0.0
        return compare(a, b, rtol=rtol, noise=allowed, span=width, usual=self.usual.get(key, 0.0), eps=eps,
                       rounding=noise.rounding)  # fmt: skip

    @staticmethod
    def _within(leaf: Leaf, noise: Noise) -> bool:
        if leaf.fault:
            return False
        if leaf.flips:
            return leaf.flips <= NOISE_FACTOR * noise.flips
        return leaf.worst <= 1.0

    def _why(self, leaf: Leaf, how: str) -> str:
        if leaf.flips:
            return f"{leaf.flips:.2%} of its elements differ{how}"
        if self.effect == "lossy":
            return self.budget.fault(leaf.distance, leaf.cosine) + how
        error = f"max relative error {leaf.max_rel:.3g} (max absolute {leaf.max_abs:.3g})"
        return f"{error} is {leaf.worst:.3g} times the tolerance{how}"

    @staticmethod
    def _fail(record: OutputComparison, reason: str, broken: bool) -> None:
        record.broken = record.broken or broken
        if record.ok:
            record.ok, record.reason = False, reason

    def _note(self, text: str) -> None:
        """Notes differ in their figures from sample to sample; the first of each output is enough."""
        if not any(n.split(":")[0] == text.split(":")[0] and n[:40] == text[:40] for n in self.result.notes):
            self.result.notes.append(text)

    def _conclude(self) -> None:
        result = self.result
        if not all(o.ok for o in self.outputs.values()):
            result.verdict = "different"
        elif self.outputs and not self.compared:
            result.notes.append("no output can be compared: the original answers differently from run to run")
        elif not result.informative:
            result.notes.append("no sample proves anything: the original's outputs hardly move; give others with --samples")
        elif self.identical:
            result.verdict = "identical"
        elif self.rounding:
            result.verdict = "equivalent"
            if self.effect == "exact":
                result.notes.append("the bits of some outputs differ, though every pass says that it is exact")
        else:
            result.verdict = "within-budget"


def _distinct(sizes: list[Mapping[str, list[int]]]) -> list[dict[str, list[int]]]:
    found: list[dict[str, list[int]]] = []
    for size in sizes:
        if dict(size) not in found:
            found.append(dict(size))
    return found
