"""Least-squares reconstruction: layers after a cut get the weights with which they come closest to what they gave before.

He, Zhang, Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3.1 (reconstruction); the
ridge pulls towards the weights that are there, so that few samples change little.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import runtime
from graphopt.formats import Tapped
from graphopt.model import KEPT
from graphopt.recovery.patches import NotLinear, as_matrix, from_matrix, outputs_as_rows, rows_of
from graphopt.reporting.progress import Progress
from graphopt.rewriting import constant_array, use_count

ROWS = 512  # places of the output that are looked at, of each sample
RIDGE = 1e-3  # of the mean of the squared inputs
_ASIDE = 5  # every fifth sample judges what the others taught


@dataclass(frozen=True)
class Reconstructed:
    """What became of one layer.

    Attributes:
        name: of the operator.
        before, after: squared error of its output, relative to the output before the cut, on samples that were set
            aside; `after` is what it would have been where it was left alone.
        kept: whether the new weights were taken.
        reason: why not; "" where they were.
    """

    name: str
    before: float
    after: float
    kept: bool
    reason: str = ""


def reconstruct(
    original: ir.Model,
    pruned: ir.Model,
    samples: Iterable[Any],
    kept: Mapping[str, Mapping[int, np.ndarray]],
    *,
    rows: int = ROWS,
    ridge: float = RIDGE,
    seed: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> list[Reconstructed]:
    """Fit, one after the other, the linear operators of `pruned` that read fewer channels than they did.

    Args:
        original: the graph before the cut, in which nodes and values have the same names.
        pruned: the graph after it; its weights are replaced.
        samples: with `feeds`, gone through twice for every layer; every fifth is set aside to judge.
        kept: value -> axis -> mask of what was kept of it (bool), as `kept_in` gives it.
        rows: places of an output that are used of each sample, drawn at random.
        ridge: weight of staying where it is, relative to the mean squared input.

    Returns:
        One record a layer, in the order of the graph.
    """
    found = []
    readers = [node for node in pruned.graph if _reads_less(node, kept)]
    job = _Job(rows, ridge, seed, threads)
    with (
        tempfile.TemporaryDirectory(prefix="graphopt-recovery-") as folder,
        (progress or Progress(quiet=True)).stage("reconstructing layers") as stage,
    ):
        (Path(folder) / "whole").mkdir()
        whole = Tapped(original, Path(folder) / "whole")
        for number, node in enumerate(readers):
            stage(number, len(readers))
            found.append(job.layer(node, pruned, whole, samples, kept, Path(folder) / str(number)))
    return found


def kept_in(model: ir.Model) -> dict[str, dict[int, np.ndarray]]:
    """What passes that cut have kept: value -> axis -> mask over what there was before the first of them."""
    values = [*model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    return {v.name: v.meta[KEPT] for v in values if v.name and KEPT in v.meta}


def _reads_less(node: ir.Node, kept: Mapping[str, Mapping[int, np.ndarray]]) -> bool:
    """Whether a linear operator lost some of what its weight is multiplied with."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2 or node.inputs[1] is None:
        return False
    if node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1:
        return False
    axis = 1 if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0)) else 0
    return axis in kept.get(node.inputs[1].name or "", {})


@dataclass
class _Sums:
    """What a least-squares fit needs of rows X and targets Y: X'X, X'Y and Y'Y, in double precision."""

    xx: np.ndarray
    xy: np.ndarray
    yy: float = 0.0
    count: int = 0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        x, y = x.astype(np.float64), y.astype(np.float64)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += float((y * y).sum())
        self.count += len(x)

    def error(self, matrix: np.ndarray) -> float:
        """|Y - X matrix|^2 / |Y|^2."""
        squared = self.yy - 2 * float((self.xy * matrix).sum()) + float((matrix * (self.xx @ matrix)).sum())
        return max(squared, 0.0) / self.yy if self.yy else 0.0


@dataclass(frozen=True)
class _Job:
    rows: int
    ridge: float
    seed: int
    threads: int

    def layer(
        self, node: ir.Node, pruned: ir.Model, whole: Tapped, samples: Iterable[Any], kept: Mapping[str, Mapping[int, np.ndarray]],
        folder: Path,
    ) -> Reconstructed:  # fmt: skip
        name = node.name or node.op_type
        weight = constant_array(node.inputs[1])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if weight is None or weight.dtype.kind != "f":
            return Reconstructed(name, 0.0, 0.0, False, "its weight is no float constant")
        if use_count(node.inputs[1]) > 1 or (bias is not None and use_count(bias) > 1):  # type: ignore[arg-type]
            return Reconstructed(name, 0.0, 0.0, False, "its weight or bias serves other layers too")
        old_bias = None if bias is None else constant_array(bias)
        if bias is not None and (old_bias is None or node.attributes.get_float("beta", 1.0) != 1.0):
            return Reconstructed(name, 0.0, 0.0, False, "its bias is no plain constant")
        old = as_matrix(node, weight).astype(np.float64)
        if old_bias is not None:
            old = np.vstack([old, np.broadcast_to(old_bias.astype(np.float64).reshape(-1), (1, old.shape[1]))])
        try:
            taught, judged = self._sums(node, pruned, whole, samples, kept, folder, old, weight.shape, bias is not None)
        except NotLinear as error:
            return Reconstructed(name, 0.0, 0.0, False, str(error))
        before = judged.error(old)
        if not judged.count or taught.count < 2:
            return Reconstructed(name, before, before, False, "too few samples")
        pull = self.ridge * float(np.trace(taught.xx)) / len(taught.xx)
        change = np.linalg.solve(taught.xx + pull * np.eye(len(taught.xx)), taught.xy - taught.xx @ old) if pull > 0 else np.zeros_like(old)
        new = old + change
        after = judged.error(new)
        if not np.isfinite(new).all() or not after < before:
            return Reconstructed(name, before, after, False, "the weights that are there do better on samples that were set aside")
        _give(node.inputs[1], from_matrix(node, new[:-1] if bias is not None else new, weight))  # type: ignore[arg-type]
        if bias is not None:
            _give(bias, new[-1].reshape(old_bias.shape).astype(old_bias.dtype))  # type: ignore[union-attr]
        return Reconstructed(name, before, after, True)

    def _sums(
        self, node: ir.Node, pruned: ir.Model, whole: Tapped, samples: Iterable[Any], kept: Mapping[str, Mapping[int, np.ndarray]],
        folder: Path, old: np.ndarray, shape: tuple[int, ...], biased: bool,
    ) -> tuple[_Sums, _Sums]:  # fmt: skip
        x_name, y_name = node.inputs[0].name, node.outputs[0].name  # type: ignore[union-attr]
        masks = kept.get(y_name or "", {})
        folder.mkdir()
        now = self._reader(Tapped(pruned, folder).write([x_name]), x_name, pruned)  # type: ignore[list-item]
        then = self._reader(whole.write([y_name]), y_name, pruned)  # type: ignore[list-item]
        taught, judged = (_Sums(np.zeros((len(old), len(old))), np.zeros(old.shape)) for _ in range(2))
        random = np.random.default_rng(self.seed)
        for number, sample in enumerate(samples):
            x, whole_y = now(sample.feeds), then(sample.feeds)
            y = outputs_as_rows(node, whole_y)
            mask = masks.get(1 if node.op_type == "Conv" else whole_y.ndim - 1)
            if mask is not None:
                y = y[:, mask]
            chosen = random.choice(len(y), self.rows, replace=False) if len(y) > self.rows else None
            seen = rows_of(node, x, shape, chosen, len(y))
            if biased:
                seen = np.hstack([seen, np.ones((len(seen), 1), seen.dtype)])
            (judged if number % _ASIDE == _ASIDE - 1 else taught).add(seen, y if chosen is None else y[chosen])
        return taught, judged

    def _reader(self, path: Path, name: str | None, model: ir.Model) -> Any:
        session = runtime.session(path, optimize=False, threads=self.threads)

        def read(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
            return np.asarray(runtime.run(session, feeds)[name])

        return read


def _give(value: ir.Value, array: np.ndarray) -> None:
    assert value.const_value is not None and value.const_value.shape.numpy() == array.shape
    value.const_value = ir.Tensor(np.ascontiguousarray(array), name=value.name)
