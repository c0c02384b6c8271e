"""`graphopt bisect`: which pass, at which node, makes the result differ?"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.cli import options as o
from graphopt.cli.output import only_result, print_json, print_text

if TYPE_CHECKING:
    from graphopt.pipeline.runner import Candidate
    from graphopt.request import Request
    from graphopt.verification import Reference, Sample


def bisect(
    model: o.ModelFile,
    preset: o.Preset = "default",
    passes: o.Passes = None,
    skip: o.Skip = None,
    set_: o.Set = None,
    plugin: o.Plugin = None,
    fix_initializers: o.FixInitializers = False,
    provider: o.Provider = "cpu",
    threads: o.Threads = 0,
    shape: o.Shape = None,
    samples: o.Samples = None,
    calibration: o.Calibration = None,
    preprocess: o.Preprocess = None,
    tolerance: o.Tolerance = None,
    budget: o.Budget = None,
    seed: o.Seed = 0,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Find the pass and the node that make a result differ. Exit code 0: nothing to bisect; 1: a culprit was found."""
    from graphopt.reporting.progress import Progress
    from graphopt.request import Request

    request = Request(
        model=model,
        preset=preset,
        passes=None if passes is None else o.names_of(passes, "--passes"),
        skip=o.names_of(skip, "--skip") if skip else (),
        options=o.settings_of(set_ or ()),
        plugins=tuple(plugin or ()),
        provider=provider,
        threads=threads,
        shapes=o.shapes_of(shape or ()),
        samples=samples,
        calibration=calibration,
        preprocess=preprocess,
        tolerance=o.finite(tolerance, "--tolerance"),
        budget=o.budget_of(budget),
        seed=seed,
        fix_initializers=fix_initializers,
    )
    o.onnx_only(model, "graphopt bisect")
    o.existing(model, "file")
    o.existing(samples, "samples file or folder")
    with only_result(json):
        found = _search(request, Progress(quiet=quiet))
    if json:
        print_json(found)
    elif not quiet:
        print_text(_text(found))
    return 1 if found["culprits"] else 0


def _search(request: Request, progress: Any) -> dict[str, Any]:
    from graphopt import runtime
    from graphopt.cli.sampling import find_samples
    from graphopt.measurement import detect
    from graphopt.pipeline.bisect import without_culprits
    from graphopt.pipeline.runner import Hold, run_pipeline
    from graphopt.request import calibration_of, load, plan
    from graphopt.rewriting.context import Tools
    from graphopt.verification import Reference

    _, pipeline = plan(request)
    runtime.resolve_provider(request.provider)
    model = load(request)
    reference = Reference(request.model, threads=request.threads, provider=request.provider, seed=request.seed)
    with progress.stage("finding samples"):
        inputs, warnings = find_samples(model, reference, request.samples, request.shapes, request.seed)

    tools = Tools(target=detect(request.provider, request.threads))
    if any(step.calibrates for step in pipeline.steps):
        calibration = calibration_of(request, model.graph, reference)
        tools = Tools(calibration, tools.target)
        warnings += calibration.warnings()

    def build(hold: Hold) -> Candidate:
        return run_pipeline(model.fresh, pipeline, hold=hold, tools=tools)

    with progress.stage("bisecting"), tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        judge = _Judge(request, reference, inputs, Path(folder))
        candidate = build(Hold())
        reason = judge.wrong(candidate)
        culprits: list[dict[str, Any]] = []
        trials = 1
        if reason is not None:
            search = without_culprits(build, judge.wrong, candidate, reason)
            trials += search.trials
            culprits = [
                {"pass": None if c.pass_name == "(none)" else c.pass_name, "node": c.label, "reason": c.reason} for c in search.culprits
            ]
    return {
        "model": str(request.model),
        "preset": pipeline.name,
        "applications": len(candidate.applications),
        "trials": trials,
        "verdict": judge.verdict,
        "culprits": culprits,
        "failed": [{"pass": run.name, "reason": run.note} for run in candidate.runs if run.status == "failed"],
        "warnings": warnings,
    }


class _Judge:
    """Says what is wrong with a candidate; remembers the verdict on the first, the whole pipeline's."""

    def __init__(self, request: Request, reference: Reference, samples: list[Sample], folder: Path) -> None:
        self.request, self.reference, self.samples, self.folder = request, reference, samples, folder
        self.verdict = ""

    def wrong(self, candidate: Candidate) -> str | None:
        from graphopt.formats import save_model
        from graphopt.rewriting.base import Effect
        from graphopt.verification import verify

        request = self.request
        effect = max((Effect(r.effect) for r in candidate.runs if r.applied), key=lambda e: e.strength, default=Effect.EXACT)
        trial = self.folder / "trial"
        trial.mkdir()
        try:
            save_model(candidate.model, trial / "candidate.onnx")
            found = verify(
                request.model, trial / "candidate.onnx", self.samples, effect=effect.value, tolerance=request.tolerance,
                budget=request.accepted, threads=request.threads, provider=request.provider, reference=self.reference, coverage=False,
            )  # fmt: skip
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        self.verdict = self.verdict or found.verdict
        return found.reason


def _text(found: dict[str, Any]) -> str:
    lines = []
    if not found["culprits"]:
        where = f"{found['applications']:,} applications of pipeline {found['preset']}"
        lines.append(f"nothing to bisect: {found['verdict']} after {where}")
    for culprit in found["culprits"]:
        if culprit["pass"] is None:
            lines.append(f"no pass is at fault: loaded and saved, the model already differs: {culprit['reason']}")
        else:
            where = f"at node '{culprit['node']}'" if culprit["node"] else "as a whole"
            lines.append(f"culprit: {culprit['pass']} {where}: {culprit['reason']}")
    lines += [f"failed: {f['pass']}: {f['reason']}" for f in found["failed"]]
    lines += [f"warning: {warning}" for warning in found["warnings"]]
    return "\n".join(lines)
