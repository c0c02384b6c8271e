"""Runs presets over random models and compares with ONNX Runtime without its optimizations."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from graphopt.formats import load_model, save_model
from graphopt.pipeline.presets import Pipeline, load_preset
from graphopt.pipeline.runner import Candidate, Hold, run_pipeline
from tests.fuzz.blocks import build
from tests.fuzz.build import Builder
from tests.support import REGISTRY, session

TOLERANCE = {"float16": 4e-3, "float32": 2e-5, "float64": 1e-10}  # of the largest magnitude of an output
_STEP = {"float16": 2e-3, "float32": 5e-7, "float64": 1e-15}  # by which inputs and weights are moved to see what that does

_SUMMED = frozenset(("Conv", "ConvTranspose", "FusedConv", "FusedMatMul", "Gemm", "MatMul"))

Outputs = list[np.ndarray]


class Rejected(Exception):
    """The runtime turns the random model down: nothing to compare."""


@dataclasses.dataclass
class Finding:
    """What is wrong with one result."""

    seed: int
    steps: int
    preset: str
    kind: str
    text: str
    before: onnx.ModelProto
    after: onnx.ModelProto | None
    feeds: dict[str, np.ndarray] | None
    passes: tuple[str, ...] = ()


def presets(names: Sequence[str] = ("clean", "default", "ort")) -> dict[str, Pipeline]:
    """The presets to check, by name."""
    return {name: load_preset(name, REGISTRY) for name in names}


def check(seed: int, pipelines: dict[str, Pipeline], steps: int | None = None) -> Finding | None:
    """Build the model of a seed and check what each preset makes of it; the first thing found wrong, or None.

    Raises:
        Rejected: there is nothing to compare.
    """
    builder = build(seed, steps)
    before, feeds = builder.model(), builder.feeds()
    count = steps or 0
    expected = _expected(before, feeds)
    with tempfile.TemporaryDirectory(prefix="graphopt-fuzz-") as folder:
        for name, pipeline in pipelines.items():
            found = _check_one(before, feeds, expected, pipeline, Path(folder), exact=_exact(builder, name))
            if found is None:
                continue
            kind, text, after, feed = found
            return Finding(seed, count, name, kind, text, before, after, feed)
    return None


def _exact(builder: Builder, preset: str) -> bool:
    """Whether answers must agree in every bit; the runtime computes half precision in single and rounds where it likes."""
    return preset == "clean" and builder.float != "float16"


def _expected(before: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> list[Outputs]:
    try:
        runner = session(before)
        return [runner.run(None, feed) for feed in feeds]
    except Exception as error:
        raise Rejected(str(error).splitlines()[0]) from error


def optimized(before: onnx.ModelProto, pipeline: Pipeline, folder: Path, hold: Hold | None = None) -> tuple[onnx.ModelProto, Candidate]:
    """The model as a preset leaves it, through files as in a run."""
    source, target = folder / "in.onnx", folder / "out.onnx"
    onnx.save(before, source)
    candidate = run_pipeline(lambda: load_model(source), pipeline, hold=hold)
    save_model(candidate.model, target)
    return onnx.load(target), candidate


def _check_one(before, feeds, expected, pipeline: Pipeline, folder: Path, *, exact: bool, hold: Hold | None = None):
    try:
        after, candidate = optimized(before, pipeline, folder, hold)
    except Exception as error:
        return "crash", repr(error), None, None
    failed = [f"{r.name}: {r.note}" for r in candidate.runs if r.status == "failed"]
    if failed:
        return "failed pass", "; ".join(failed), after, None
    try:
        runner = session(after)
        results = [runner.run(None, feed) for feed in feeds]
    except Exception as error:
        return "invalid", str(error).splitlines()[0], after, None
    for feed, want, got in zip(feeds, expected, results):
        text = difference(want, got, exact=exact)
        if text is not None and not (not exact and _unstable(before, feed, want, got)):
            return "wrong", text, after, feed
    left = None if exact else _denormal_weight(after)
    if left is not None:
        return "denormal", f"the weight {left} holds denormal numbers", after, None
    if hold is None:
        again, second = optimized(after, pipeline, folder)
        if second.applications or again.SerializeToString() != after.SerializeToString():
            what = sorted({a.pass_name for a in second.applications}) or ["other bytes"]
            return "unsettled", f"a second run changes more: {', '.join(what)}", after, None
    return None


def _denormal_weight(model: onnx.ModelProto) -> str | None:
    """The name of a weight of matrix products and convolutions alone that holds denormal numbers, which make them slow."""
    users: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    fixed = {i.name for i in model.graph.input} | {o.name for o in model.graph.output}
    captured = {name for node in model.graph.node for a in node.attribute for inner in a.g.node for name in inner.input}
    for tensor in model.graph.initializer:
        if tensor.name in fixed | captured or not users.get(tensor.name, {""}) <= _SUMMED or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        array = np.abs(onnx.numpy_helper.to_array(tensor))
        if array.size > 1 and ((array > 0) & (array < np.finfo(np.float32).tiny)).any():
            return tensor.name
    return None


def difference(want: Outputs, got: Outputs, *, exact: bool = False, factor: float = 1.0) -> str | None:
    """How two lists of outputs differ beyond rounding, or None."""
    for i, (a, b) in enumerate(zip(want, got, strict=True)):
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"output {i}: {a.dtype}{a.shape} became {b.dtype}{b.shape}"
        if a.dtype.kind != "f" or exact:
            if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                return f"output {i} differs: {int((a != b).sum())} of {a.size} elements"
            continue
        if not np.array_equal(np.isnan(a), np.isnan(b)) or not np.array_equal(np.isinf(a), np.isinf(b)):
            return f"output {i}: not a number or infinite in other places"
        finite = np.isfinite(a)
        a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
        worst = float(np.abs(a - b).max(initial=0.0))
        if worst > factor * TOLERANCE[want[i].dtype.name] * max(1e-3, float(np.abs(a).max(initial=0.0))):
            return f"output {i} differs by {worst:.3g} of {np.abs(a).max():.3g}"
    return None


def _unstable(before: onnx.ModelProto, feed: dict[str, np.ndarray], want: Outputs, got: Outputs) -> bool:
    """Whether the original itself moves about as far, or jumps, when its inputs and weights change by about a rounding."""
    for seed in range(6):
        numbers = np.random.default_rng(seed)
        moved = onnx.ModelProto.FromString(before.SerializeToString())
        for tensor in moved.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype.name in _STEP and array.size > 1:
                tensor.CopyFrom(onnx.numpy_helper.from_array(_moved(array, numbers), tensor.name))
        near = {n: _moved(a, numbers) if a.dtype.name in _STEP else a for n, a in feed.items()}
        try:
            other = session(moved, optimize=seed % 2 == 1).run(None, near)
        except Exception:
            return True
        for a, b, c in zip(want, other, got):
            if a.shape != b.shape:
                return True
            if a.dtype.kind != "f":
                if not np.array_equal(a, b) and not np.array_equal(a, c):
                    return True
            elif not (np.array_equal(np.isfinite(a), np.isfinite(b))):
                return True
            else:
                finite = np.isfinite(a) & np.isfinite(c)
                noise = np.abs(a[finite].astype(np.float64) - b[finite]).max(initial=0.0)
                error = np.abs(a[finite].astype(np.float64) - c[finite]).max(initial=0.0)
                if noise * 10 > error > 0 and difference([a], [c]) is not None:
                    return True
    return False


def _moved(array: np.ndarray, numbers: np.random.Generator) -> np.ndarray:
    return (array * (1 + _STEP[array.dtype.name] * numbers.uniform(-1, 1, array.shape))).astype(array.dtype)


def shrink(finding: Finding, pipelines: dict[str, Pipeline]) -> Finding:
    """The finding with as few blocks as show it, and the passes without any one of which it is gone."""
    chosen = {finding.preset: pipelines[finding.preset]}
    for steps in range(1, 9):
        try:
            smaller = check(finding.seed, chosen, steps)
        except Rejected:
            continue
        if smaller is not None and smaller.kind == finding.kind:
            finding = smaller
            break
    if finding.kind in ("wrong", "invalid"):
        builder = build(finding.seed, finding.steps or None)
        before, feeds = builder.model(), builder.feeds()
        expected = _expected(before, feeds)
        names = []
        with tempfile.TemporaryDirectory(prefix="graphopt-fuzz-") as folder:
            for step in dict.fromkeys(s.name for s in chosen[finding.preset].steps):
                hold, exact = Hold(passes=frozenset((step,))), _exact(builder, finding.preset)
                if _check_one(before, feeds, expected, chosen[finding.preset], Path(folder), exact=exact, hold=hold) is None:
                    names.append(step)
        finding = dataclasses.replace(finding, passes=tuple(names))
    return finding


def save(finding: Finding, folder: Path) -> Path:
    """Write what reproduces a finding."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{finding.kind.replace(' ', '-')}-{finding.preset}-{finding.seed}"
    onnx.save(finding.before, f"{stem}.before.onnx")
    if finding.after is not None:
        onnx.save(finding.after, f"{stem}.after.onnx")
    if finding.feeds is not None:
        np.savez(f"{stem}.npz", **finding.feeds)
    Path(f"{stem}.txt").write_text(
        f"seed {finding.seed}, steps {finding.steps or 'all'}, preset {finding.preset}, onnxruntime {ort.__version__}\n"
        f"{finding.kind}: {finding.text}\ngone without: {', '.join(finding.passes) or '-'}\n"
    )
    return Path(f"{stem}.txt")
