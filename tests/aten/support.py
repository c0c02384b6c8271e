"""Small torch programs, passes run over them, and what they compute beside the eager module."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from graphopt.aten import Program, operator_of  # noqa: E402
from graphopt.model import Model  # noqa: E402
from graphopt.pipeline.presets import Pipeline  # noqa: E402
from graphopt.pipeline.runner import Candidate, Hold, run_pipeline  # noqa: E402
from tests.support import REGISTRY  # noqa: E402


def exported(module: Any, *inputs: Any, dynamic: Any = None) -> Any:
    """The functional program of a module in eval mode; `dynamic` as torch.export's dynamic_shapes."""
    program = torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic)
    return program.run_decompositions({})


def rewritten(program: Any, *passes: str, hold: Hold | None = None, rounds: int = 1, options: Any = None) -> Candidate:
    """The candidate of passes, run in order, over a program; `options` by pass and option."""
    steps = [REGISTRY.get(name).configure((options or {}).get(name)) for name in passes]
    return run_pipeline(lambda: Model(Program(program), kind="torch"), Pipeline.of("test", steps, rounds), hold=hold)


def result(candidate: Candidate) -> Any:
    """The program that came of it, checked by torch."""
    assert all(run.status != "failed" for run in candidate.runs), [run.note for run in candidate.runs]
    return candidate.model.graph.export()


def ops(program: Any) -> Counter[str]:
    """Operators of a program's main graph, without namespace and overload: {"conv2d": 2}."""
    names = (operator_of(n) for n in program.graph.nodes if n.op == "call_function")
    return Counter(name.split(".")[1] if "." in name else name for name in names)


def refusals(candidate: Candidate) -> list[str]:
    """The reasons of everything that was refused."""
    return [r.reason for run in candidate.runs for r in run.refused]


def assert_same(module: Any, program: Any, *samples: Sequence[Any], rtol: float = 1e-5, atol: float | None = None) -> None:
    """The program gives what the eager module gives, call after call, buffers included; neither is changed by the test."""
    eager, made = copy.deepcopy(module), copy.deepcopy(program).module()
    with torch.no_grad():
        for inputs in samples:
            expected = torch.utils._pytree.tree_leaves(eager(*copy.deepcopy(tuple(inputs))))
            found = torch.utils._pytree.tree_leaves(made(*copy.deepcopy(tuple(inputs))))
            assert len(expected) == len(found)
            for a, b in zip(expected, found, strict=True):
                scale = float(a.abs().max()) if a.numel() and a.is_floating_point() else 1.0
                torch.testing.assert_close(b, a, rtol=rtol, atol=rtol * scale if atol is None else atol)
