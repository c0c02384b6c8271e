"""The command line in this process, and small models to give it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.cli.entry import invoke
from tests.support import array, model, node


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command line in this process."""

    def run(*args: object) -> Outcome:
        capsys.readouterr()
        code = invoke([str(a) for a in args])
        return Outcome(code, *capsys.readouterr())

    return run


def convolution(**changes: Any) -> onnx.ModelProto:
    """x [1, 3, 8, 8] -> Conv -> Identity -> Relu -> y."""
    return model(
        [
            node("Conv", ["x", "w"], ["c"], name="conv"),
            node("Identity", ["c"], ["i"], name="same"),
            node("Relu", ["i"], ["y"], name="relu"),
        ],
        {"x": [1, 3, 8, 8]}, ["y"], {"w": array(4, 3, 3, 3)}, **changes,
    )  # fmt: skip


@pytest.fixture
def ok(tmp_path: Path) -> Path:
    """A model's file that is all right."""
    path = tmp_path / "ok.onnx"
    onnx.save(convolution(), path)
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Samples that fit it."""
    path = tmp_path / "samples.npz"
    np.savez(path, x=array(1, 3, 8, 8, seed=3))
    return path
