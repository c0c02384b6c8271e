"""The same input gives the same bytes: from run to run, and whatever the seed of Python's hashes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.chain import chain

SCRIPT = """
import sys
from graphopt.formats import load_model, save_model
from graphopt.pipeline.presets import load_preset
from graphopt.pipeline.registry import Registry
from graphopt.pipeline.runner import run_pipeline
registry = Registry.discover()
for preset in ("clean", "default", "ort", "weights-int8"):
    candidate = run_pipeline(lambda: load_model(sys.argv[1]), load_preset(preset, registry))
    save_model(candidate.model, sys.argv[2] + preset + ".onnx")
"""


def digests(source: Path, folder: Path, seed: str) -> list[str]:
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(source), f"{folder}/"], check=True, env={**os.environ, "PYTHONHASHSEED": seed}, timeout=300
    )
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.onnx"))]


@pytest.mark.parametrize("which", ["chain", "branches"])
def test_same_bytes(which: str, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    if which == "chain":
        chain(20, source)
    else:
        from tests.test_random_graphs import branches

        onnx.save(branches(), source)
    first = digests(source, tmp_path / "a", "0")
    assert len(first) == 4
    assert digests(source, tmp_path / "b", "1") == first
    assert digests(source, tmp_path / "c", "4242") == first
