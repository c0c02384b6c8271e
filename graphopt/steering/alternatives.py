"""What other presets would gain over the result on this target: built, verified and measured beside it, in short."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from graphopt.measurement import FinalGraph, Speed
from graphopt.pipeline.presets import Pipeline
from graphopt.pipeline.runner import Candidate, Hold

_SECONDS = 10.0  # that a run of the pipeline and a verification may take for this to be worth its time
_RACE_SECONDS = 5.0


class Bench(Protocol):
    """What the comparison needs."""

    def build(self, hold: Hold | None = None, pipeline: Pipeline | None = None) -> Candidate: ...

    def graph_of(self, candidate: Candidate) -> FinalGraph | None: ...

    def race(self, a: Candidate, b: Candidate, seconds: float, decide: float | None = None) -> Speed: ...

    def compare(self, candidate: Candidate, *, final: bool = True) -> tuple[str | None, dict[str, Any]]: ...

    def tell(self, text: str) -> None: ...


@dataclass(frozen=True)
class Alternative:
    """What came of another preset.

    Attributes:
        preset: its name.
        verdict: of verification.
        same: the runtime ends with the same graph for the result and for the other one.
        speed: of the other one beside the result; None where nothing was timed.
    """

    preset: str
    verdict: str
    same: bool = False
    speed: Speed | None = None

    def to_dict(self) -> dict[str, Any]:
        figures = dict.fromkeys(("ratio", "low", "high"), 1.0 if self.same else None) | {"pairs": 0}
        if self.speed is not None:
            figures = {key: getattr(self.speed, key) for key in figures}
            figures |= {"faster": self.speed.faster, "slower": self.speed.slower}
        return {"preset": self.preset, "verdict": self.verdict, **figures}


def look(bench: Bench, candidate: Candidate, pipelines: Iterable[Pipeline], *, expected_seconds: float) -> list[Alternative]:
    """Build, verify and measure other pipelines beside the result, as long as that takes little.

    Args:
        bench: builds and measures.
        candidate: the result; what was undone in it is left out of the others, too.
        pipelines: the other ones.
        expected_seconds: what building and verifying one takes, by what the result took.
    """
    found = []
    left = _SECONDS
    for pipeline in pipelines:
        left -= expected_seconds
        if left < 0:
            break
        bench.tell(f"trying preset {pipeline.name}")
        other = bench.build(Hold(passes=candidate.hold.passes), pipeline)
        if any(run.status == "failed" for run in other.runs):
            continue  # whoever asks for that preset is told
        graph = bench.graph_of(candidate)
        same = graph is not None and graph == bench.graph_of(other)
        reason, verification = bench.compare(other, final=False)
        verdict = str(verification["verdict"])
        if same or reason is not None:
            found.append(Alternative(pipeline.name, verdict, same and reason is None))
        else:
            found.append(Alternative(pipeline.name, verdict, False, bench.race(candidate, other, _RACE_SECONDS)))
    return found
