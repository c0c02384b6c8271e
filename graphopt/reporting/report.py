"""The report of a run as a value, and as JSON: the contract that scripts read."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["kept", "no-change", "rolled-back", "failed"]
SECONDS = ("load", "passes", "verify", "bench", "save")


@dataclass(frozen=True)
class Refusal:
    """A match that a guard of a pass turned down."""

    node: str
    reason: str


@dataclass
class PassRecord:
    """What one pass did.

    applied: rewrites done. nodes_before, nodes_after: as `describe` counts them. seconds: wall time of the pass.
    note: why it was rolled back or failed, or whatever else is to be said of it, in one line. kind: of the graph that it
    was run on, "onnx" or "torch".
    """

    name: str
    effect: str
    applied: int
    refused: list[Refusal]
    nodes_before: int
    nodes_after: int
    seconds: float
    status: Status
    note: str = ""
    kind: str = "onnx"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "effect": self.effect,
            "applied": self.applied,
            "refused": [{"node": r.node, "reason": r.reason} for r in self.refused],
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "seconds": self.seconds,
            "status": self.status,
            "note": self.note,
            "kind": self.kind,
        }


@dataclass
class Report:
    """All that a run has to tell. The dicts are those of the JSON contract, made by the stages themselves.

    model: see `describe_interface`. output: the file written, None where none was. target: provider, device, threads,
    isa. before, after: see `describe`. verification: verdict, samples, sizes, outputs; None where it was switched off.
    speed: ratio, low, high, before_ms, after_ms, pairs; None where nothing was measured. quality: metric, before,
    after; None without a metric. seconds: by stage, of `SECONDS`; stages that did not run count 0.
    notes, warnings: lines for the reader. extra: further keys of the JSON, such as the provenance of the nodes.
    peak_rss_bytes: the process's highest resident memory; taken when the report is written where it is None.
    """

    model: dict[str, Any]
    target: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]
    passes: list[PassRecord]
    output: str | None = None
    verification: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    peak_rss_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of the report as plain values: keys in a fixed order, floats of six digits, None for NaN and infinity.

        Raises ValueError where `extra` repeats a key of the contract.
        """
        made = {
            "version": self.version or _version(),
            "model": self.model,
            "output": self.output,
            "target": self.target,
            "before": self.before,
            "after": self.after,
            "passes": [p.to_dict() for p in self.passes],
            "verification": self.verification,
            "speed": self.speed,
            "quality": self.quality,
            "seconds": dict.fromkeys(SECONDS, 0.0) | self.seconds,
            "peak_rss_bytes": peak_rss_bytes() if self.peak_rss_bytes is None else self.peak_rss_bytes,
            "notes": self.notes,
            "warnings": self.warnings,
        }
        if clash := sorted(made.keys() & self.extra.keys()):
            raise ValueError(f"extra repeats {', '.join(clash)}")
        return plain(made | self.extra)

    def to_json(self) -> str:
        """The report as JSON text, ended by a line break."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy's scalars and arrays as Python's, floats of six digits, None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(v) for v in value), key=repr)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy
        return plain(value.tolist())
    return str(value)


def peak_rss_bytes() -> int:
    """The highest resident memory of this process so far, in bytes; 0 on Windows, which does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux, bytes on macOS


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("graphopt")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
