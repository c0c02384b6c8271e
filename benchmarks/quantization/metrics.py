"""graphopt's `--metric`: `benchmarks.quantization.metrics:MODEL` is the score of a model of the zoo on its validation split.

A function for every model that has a score is made when it is asked for. The folder of data is that of the environment
variable GRAPHOPT_QUANTIZATION_WORK; RECIPES_DIR does not matter, recipes have no score.
"""

from __future__ import annotations

from typing import Any

from benchmarks.quantization.cases import cases


def __getattr__(name: str) -> Any:
    found = {case.name: case for case in cases(None)}.get(name)
    if found is None or found.task.score is None:
        raise AttributeError(name)
    from graphopt import runtime

    session = runtime.session(found.path(), threads=1)
    score = found.task.score
    return lambda run: score(run, "validation", lambda fed: runtime.run(session, fed))
