"""Export alone: a torch program as ONNX or as a `.pt2`, with no pass run over it, verified beside the eager module."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from graphopt.errors import OptionError
from graphopt.extras import require_torch
from graphopt.programs.calling import Caller
from graphopt.programs.capture import capture
from graphopt.programs.describe import describe_captured, describe_program
from graphopt.programs.emit import OPSET, to_onnx, to_pt2
from graphopt.programs.module import as_module
from graphopt.programs.onnx_ready import stateless
from graphopt.programs.sampling import make_samples
from graphopt.programs.verify import EagerModule
from graphopt.request import check_destination
from graphopt.verification import verify


def export_program(
    source: Any,
    output: Path,
    *,
    opset: int | None = None,
    check: bool = True,
    eval: bool = False,
    tolerance: float | None = None,
    threads: int = 0,
    seed: int = 0,
    in_place: bool = False,
) -> dict[str, Any]:
    """Export what `capture` takes to `output`, and say what came of it: model, output, program, verification, notes.

    What is verified is what is written: a result that differs from the eager module is written all the same, and its
    verdict says so.

    Raises:
        GraphoptError: the module, its inputs or the place are at fault; nothing was written.
    """
    require_torch()
    suffix = output.suffix.lower()
    if suffix not in (".onnx", ".pt2"):
        raise OptionError(f"{output}: the name of the result must end in .onnx or .pt2")
    if opset is not None and suffix != ".onnx":
        raise OptionError("--opset: only an ONNX model has one")
    what = str(source) if isinstance(source, str | Path) else type(source).__name__
    check_destination(output, Path(what), in_place=in_place)
    captured = capture(source, eval=eval)
    if suffix == ".onnx":
        captured = stateless(captured)
    with tempfile.TemporaryDirectory(prefix=".graphopt-", dir=output.parent) as folder:
        candidate: Any = Path(folder) / output.name
        warnings: list[str] = []
        notes = list(captured.notes)
        verification: dict[str, Any] | None = None
        if suffix == ".onnx":
            model = to_onnx(captured.program, captured, candidate, opset=opset or OPSET)
            notes += model.notes
        else:
            candidate = Caller(captured, as_module(captured.program), threads=threads)
        if check:
            original = EagerModule(captured, threads=threads, seed=seed, state=suffix == ".pt2")
            samples, warnings = make_samples(captured, original.run, seed=seed)
            verification = verify(None, candidate, samples, reference=original, tolerance=tolerance, threads=threads).to_dict()
        if suffix == ".onnx":
            from graphopt.formats import save_model
            from graphopt.sessions import remove_settings

            remove_settings(output)
            save_model(model, output)
        else:
            to_pt2(captured.program, output, captured, source=what, in_place=in_place)
    return {
        "model": describe_captured(captured, what),
        "output": str(output),
        "program": describe_program(captured.program),
        "verification": verification,
        "notes": notes,
        "warnings": warnings,
    }
