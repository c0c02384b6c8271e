"""What a run found out, and the report and the exit code that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.calibration import Calibration
    from graphopt.pipeline.bisect import Culprit
    from graphopt.pipeline.runner import Candidate, PassRun
    from graphopt.reporting import PassRecord, Report
    from graphopt.request import Request
    from graphopt.steering.alternatives import Alternative
    from graphopt.steering.choices import Choice
    from graphopt.steering.placing import Placing


@dataclass
class Findings:
    """What the stages of a run add up to.

    Attributes:
        culprits: what was rolled back, and whether because it was "different" or "slower".
        choices: what measuring decided of passes that can lose.
        placing: which units passes that narrow were let narrow; None where nothing was placed.
        left_out: passes that nothing was measured for, and that are left out then.
        unreached: something that was asked for could not be had.
        verification, speed, quality, session, baked: as in the report.
        alternatives: what other presets would gain.
        calibration: what passes calibrated on; None where none does.
        precision: what is known of lossy applications; None where there are none, or nothing was measured of them.
    """

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    culprits: list[tuple[str, Culprit]] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    placing: Placing | None = None
    left_out: frozenset[str] = frozenset()
    unreached: bool = False
    verification: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    session: dict[str, Any] | None = None
    baked: dict[str, Any] | None = None
    alternatives: list[Alternative] = field(default_factory=list)
    calibration: Calibration | None = None
    precision: dict[str, Any] | None = None

    def unverified(self, why: str) -> None:
        """Nothing could be proved."""
        self.verification = {"verdict": "unverified", "samples": 0, "sizes": [], "outputs": [], "notes": [why]}
        self.warnings.append(f"not verified: {why}")

    def rolled_back(self, kind: str, culprit: Culprit) -> None:
        """Something that a pass did was undone."""
        self.culprits.append((kind, culprit))
        if culprit.pass_name == "(none)":
            self.warnings.append(f"the model as loaded and saved, with no pass applied, already differs: {culprit.reason}")
        else:
            self.warnings.append(f"{culprit.pass_name}{_where(culprit)} was rolled back: {culprit.reason}")

    def exit_code(self, request: Request) -> int:
        """0: done and verified; 1: done, but not verified, or not all that was asked for."""
        if request.verify != "off" and (self.verification is None or self.verification["verdict"] in ("unverified", "different")):
            return 1
        return 1 if self.unreached or self._over_budget() else 0

    def _over_budget(self) -> bool:
        """Whether the metric of the result is known to be beyond a budget that was asked for, or could not be taken."""
        quality = self.quality
        if quality is None:
            return False
        return bool(quality.get("fault")) or (quality["budget"] is not None and not quality["loss"] <= quality["budget"])

    def report(
        self,
        request: Request,
        preset: str,
        candidate: Candidate,
        interface: dict[str, Any],
        before: dict[str, Any],
        after: dict[str, Any],
        seconds: dict[str, float],
    ) -> Report:
        """The report of the run."""
        from graphopt.measurement.target import detect
        from graphopt.reporting import Report

        return Report(
            model=interface,
            target=detect(request.provider, request.threads).to_dict(),
            before=before,
            after=after,
            passes=self.records(candidate),
            output=str(request.destination),
            verification=self.verification,
            speed=self.speed,
            quality=self.quality,
            seconds=seconds,
            notes=[*candidate.notes, *self.notes, *self._calibrated(), *_larger(before, after, self.speed)],
            warnings=self.warnings,
            extra={
                "preset": preset,
                "choices": [choice.to_dict() for choice in self.choices],
                "placement": None if self.placing is None else self.placing.to_dict(),
                "session": self.session,
                "baked": self.baked,
                "precision": self.precision,
                "calibration": None if self.calibration is None else self.calibration.to_dict(),
                "alternatives": [other.to_dict() for other in self.alternatives],
                "provenance": provenance(candidate),
            },
        )

    def _calibrated(self) -> list[str]:
        """On what passes calibrated, where any did."""
        if self.calibration is None or not self.calibration.calibrated:
            return []
        ours, aside = len(self.calibration.source), len(self.calibration.evaluation)
        split = f", drawn with seed {self.calibration.seed}; {aside:,} others are set aside to evaluate on" if aside else ""
        return [f"calibrated on {ours:,} samples of {self.calibration.source.description}{split}"]

    def records(self, candidate: Candidate) -> list[PassRecord]:
        """What each pass did."""
        from graphopt.reporting import PassRecord, Refusal

        return [
            PassRecord(
                run.name, run.effect, run.applied, [Refusal(r.node, r.reason) for r in run.refused], run.nodes_before, run.nodes_after,
                run.seconds, "no-change" if run.name in self.left_out else run.status, self._remark(run), candidate.model.kind,
            )
            for run in candidate.runs
        ]  # fmt: skip

    def _remark(self, run: PassRun) -> str:
        """What is to be said of a pass beyond its figures."""
        if run.note:
            return run.note
        for kind, culprit in self.culprits:
            if culprit.pass_name == run.name:
                return f"rolled back{_where(culprit)} ({kind}): {culprit.reason}"
        if run.name in self.left_out:
            return "left out: it pays only on some targets, and nothing was measured"
        return "; ".join([*(c.text() for c in self.choices if c.pass_name == run.name), *run.notes])


def provenance(candidate: Candidate) -> list[dict[str, Any]]:
    """For each node that a pass made, the nodes it stands for and the passes."""
    from graphopt.rewriting.changes import origin

    graph = candidate.model.graph.graph
    nodes = graph.nodes if candidate.model.kind == "torch" else graph.all_nodes()
    return [
        {"node": node.name, "from": list(names), "passes": list(passes)} for node in nodes for names, passes in (origin(node),) if passes
    ]


def _where(culprit: Culprit) -> str:
    return f" at {culprit.label}" if culprit.label else ""


def _larger(before: Mapping[str, Any], after: Mapping[str, Any], speed: Mapping[str, Any] | None) -> list[str]:
    """Why the result has more nodes than the model, where it has."""
    more = after["nodes"] - before["nodes"]
    if more <= 0:
        return []
    why = f": it measures {speed['ratio']:.2f}x faster so" if speed is not None and speed["faster"] else ""
    return [f"the result has {more:,} nodes more than the model{why}"]
