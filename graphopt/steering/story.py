"""What a run tells of the precision of its result: each unit, why it is as it is, what it costs and gains, and the curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.quality import Quality
from graphopt.rewriting import constant_tensor
from graphopt.rewriting.base import node_label
from graphopt.rewriting.changes import application

if TYPE_CHECKING:
    from graphopt.calibration import Calibration
    from graphopt.calibration.observers import Statistics
    from graphopt.pipeline.runner import Candidate
    from graphopt.placement import Placement
    from graphopt.steering.budgeted import Budgeted

WORST = 5  # units whose values are shown
BINS = 48
_CHUNK = 1 << 20  # elements of a weight that are counted at a time
_WIDE = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING})


def tell(budgeted: Budgeted, result: Candidate, placement: Placement | None = None) -> dict[str, Any]:
    """JSON-ready, of the run's result; placement: where units are fastest, as it was found last."""
    precision = budgeted.precision
    noise = budgeted.noise()
    units = _units(budgeted, result, noise, placement)
    worst = sorted((u for u in units if u["application"] in noise), key=lambda u: (-noise[u["application"]], u["application"]))[:WORST]
    return {
        "budget": str(precision.budget), "judged_by": "metric" if precision.metric else "outputs",
        "searched": precision.searched, "complete": precision.complete, "seconds": precision.seconds,
        "from_journal": precision.taken, "saves_unit": precision.unit,
        "quality": None if precision.final is None else precision.final.to_dict(),
        "predicted_ms": None if placement is None else dict(placement.predicted_ms),
        "units": units,
        "worst": [_values(budgeted, u) for u in worst],
        "curve": [
            {"back_in_float": len(held), "saved": saved, "inside": inside, **_few(quality)}
            for held, saved, quality, inside in precision.trials
        ],
    }  # fmt: skip


def _units(
    budgeted: Budgeted, result: Candidate, noise: dict[int, float], placement: Placement | None
) -> list[dict[str, Any]]:
    """A record for each application of a lossy pass, those that a placement held back among them."""
    precision = budgeted.precision
    made = {a.number: a for a in precision.units}
    timed = {u.number: u for p in (budgeted.placement, placement) if p is not None for u in p.units}
    kept = {a.number for a in result.applications if a.pass_name not in result.hold.passes}
    narrow = _narrow_types(result.model.graph)
    operators = {node_label(n): n.op_type for n in budgeted.float_base().model.graph.graph.all_nodes()}
    found = []
    for number in sorted(made.keys() | timed.keys()):
        label = made[number].label if number in made else timed[number].label
        pass_name = made[number].pass_name if number in made else timed[number].pass_name
        stays = number in kept and number in made
        if stays:
            why = "within the budget"
        elif number in precision.held:
            why = precision.held[number]
        elif number in timed and not timed[number].narrow:
            why = "left in float by placement"  # which tells why
        else:
            why = "the pass was undone"
        alone = precision.alone.get(number)
        times = timed.get(number)
        found.append({
            "application": number, "pass": pass_name, "node": label, "operator": operators.get(label),
            "precision": narrow.get(number, "narrowed") if stays else "float", "why": why,
            "alone": None if alone is None else _few(alone) | {"noise": noise.get(number)},
            "grouped": number in precision.grouped, "saves": precision.saves.get(number),
            "float_ms": None if times is None else times.float_ms, "narrow_ms": None if times is None else times.narrow_ms,
        })  # fmt: skip
    return found


def _few(quality: Quality) -> dict[str, Any]:
    figures = quality.to_dict()
    return {key: figures[key] for key in ("snr", "cosine", "top1", "metric", "loss", "fault")}


def _narrow_types(graph: ir.Model) -> dict[int, str]:
    """Application -> the narrow types of what it made: of constants that its nodes read, and of their results."""
    types: dict[int, set[str]] = {}
    for node in graph.graph.all_nodes():
        number = application(node)
        if number is None:
            continue
        seen = types.setdefault(number, set())
        bits = node.attributes.get("bits")
        if bits is not None and not bits.is_ref():
            seen.add(f"int{bits.value}")
            continue
        for value in (*node.inputs, *node.outputs):
            tensor = None if value is None else constant_tensor(value)
            dtype = tensor.dtype if tensor is not None else value.dtype if value is not None else None
            if dtype is not None and dtype not in _WIDE:
                seen.add(dtype.name.lower())
    return {number: " and ".join(sorted(seen)) for number, seen in types.items() if seen}


# --- the values of the worst ------------------------------------------------------------------------------------------


def _values(budgeted: Budgeted, unit: dict[str, Any]) -> dict[str, Any]:
    """How the weight and the activations of a unit's node are spread, before anything was narrowed."""
    graph = budgeted.float_base().model.graph
    node = next((n for n in graph.graph.all_nodes() if node_label(n) == unit["node"]), None)
    told: dict[str, Any] = {"node": unit["node"], "operator": unit["operator"], "weight": None, "activations": []}
    if node is None:
        return told
    tensor = next((t for v in node.inputs if v is not None and (t := constant_tensor(v)) is not None and len(t.shape) > 1), None)
    if tensor is not None and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        told["weight"] = {"name": tensor.name, **of_array(tensor.numpy())}
    names = [v.name for v in (*node.inputs, *node.outputs) if v is not None and v.name and constant_tensor(v) is None]
    for statistics in _calibrated(budgeted.bench.tools.calibration, graph, names):
        told["activations"].append({"name": statistics.name, **of_statistics(statistics)})
    return told


def _calibrated(calibration: Calibration | None, graph: ir.Model, names: list[str]) -> list[Statistics]:
    known = {} if calibration is None else calibration.known(graph, names)
    return [s for s in known.values() if s.histogram is not None and s.fault is None]


def of_array(values: np.ndarray) -> dict[str, Any]:
    """A histogram in BINS bins: its ends and counts; NaN and infinity are passed over."""
    flat = values.reshape(-1)
    parts = [flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK)]
    finite = [p[np.isfinite(p)] for p in parts] if not all(np.isfinite(p).all() for p in parts) else parts
    finite = [p for p in finite if p.size]
    low, high = (float(min(p.min() for p in finite)), float(max(p.max() for p in finite))) if finite else (0.0, 0.0)
    counts = np.zeros(BINS, np.int64)
    for part in finite:
        counts += np.histogram(part, BINS, (low, high if high > low else low + 1.0))[0]
    return {"low": low, "high": high, "counts": counts.tolist()}


def of_statistics(statistics: Statistics) -> dict[str, Any]:
    """The same of what calibration saw."""
    histogram = statistics.histogram
    assert histogram is not None
    low, high = statistics.low, statistics.high
    place = np.clip(((histogram.centers - low) / max(high - low, 1e-300) * BINS).astype(np.int64), 0, BINS - 1)
    counts = np.zeros(BINS, np.int64)
    np.add.at(counts, place, histogram.counts)
    return {"low": low, "high": high, "counts": counts.tolist()}
