"""Models of Hugging Face: they export, every attention is found, and the presets leave their answers as they were."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.formats import load_model, save_model
from graphopt.pipeline.presets import load_preset
from graphopt.pipeline.registry import Registry
from graphopt.pipeline.runner import run_pipeline
from models.huggingface import MODELS, export
from tests.support import ops, session

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FUSED = ("Attention", "MultiHeadAttention", "GroupQueryAttention")

# By preset ort: Attention (with the products before it), MultiHeadAttention, GroupQueryAttention.
ATTENTIONS = {
    "bert": (2, 0, 0),
    "roberta": (2, 0, 0),
    "distilbert": (2, 0, 0),
    "gpt2": (2, 0, 0),
    "gpt2-mask": (2, 0, 0),
    "t5": (4, 2, 0),
    "vit": (2, 0, 0),
    "clip-text": (2, 0, 0),
    "clip-vision": (2, 0, 0),
    "whisper": (4, 2, 0),
    "llama": (0, 0, 2),
    "llama-mask": (0, 0, 2),
    "qwen2": (0, 0, 2),
    "phi": (0, 2, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), [(m.name, how) for m in MODELS.values() for how in m.hows])
def test_attentions_are_fused_and_answers_stay(name: str, how: str, tmp_path: Path) -> None:
    model = MODELS[name]
    path = export(model, tmp_path / "model.onnx", how)
    module = model.build()
    registry = Registry.discover()
    results = {}
    for preset in ("default", "ort"):
        candidate = run_pipeline(lambda: load_model(path), load_preset(preset, registry))
        assert not [r.note for r in candidate.runs if r.status == "failed"]
        save_model(candidate.model, tmp_path / f"{preset}.onnx")
        results[preset] = onnx.load(tmp_path / f"{preset}.onnx")
    found = ops(results["ort"])
    assert tuple(found[kind] for kind in FUSED) == ATTENTIONS[name] and not found["Softmax"]
    assert sum(ATTENTIONS[name]) == model.attentions
    runs = [session(proto, optimize) for proto in results.values() for optimize in (False, True)]
    for size in ("small", "medium"):
        inputs = model.example_inputs(3, size)
        wanted, noise = _answers(module, inputs)
        for run in runs:
            names = {value.name for value in run.get_inputs()}
            got = run.run(None, {n: v.numpy() for n, v in inputs.items() if n in names})
            for want, moved, value in zip(wanted, noise, got, strict=True):
                np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5 * float(np.abs(want).max()) + 3 * moved)


def _answers(module, inputs) -> tuple[list[np.ndarray], list[float]]:
    """The answers in double precision, and by how much torch itself misses each of them in single precision."""
    with torch.no_grad():
        single = [value.numpy() for value in module(*inputs.values())]
        double = copy.deepcopy(module).double()
        exact = [value.numpy() for value in double(*(v.double() if v.is_floating_point() else v for v in inputs.values()))]
    return exact, [float(np.abs(a - b).max()) for a, b in zip(single, exact)]
