"""Public trained models: inputs come out of their graphs, at two sizes, and a fault in one weight is seen."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.verification import Reference, synthesize, verify
from graphopt.verification.perturb import inline, load
from models.zoo import MODELS, fetch

pytestmark = pytest.mark.zoo


def faulty(path: Path) -> bytes | None:
    """The model with its largest float weight scaled by 1.05; None where it has none of any size."""
    model = load(path)
    graphs = [model.graph, *{n.graph for n in model.graph.all_nodes() if n.graph is not None} - {model.graph}]
    found = [v for g in graphs for v in g.initializers.values() if v.const_value is not None and v.dtype == ir.DataType.FLOAT]
    found = [v for v in found if v.const_value.size >= 64]
    if not found:
        return None
    worst = max(found, key=lambda v: v.const_value.size)
    scaled = (worst.const_value.numpy() * np.float32(1.05)).astype(np.float32)
    worst.const_value = ir.tensor(scaled, name=worst.name)
    return inline(model)


@pytest.mark.parametrize("name", MODELS)
def test_a_public_model(name):
    path = fetch(name)
    model = ir.load(path)
    reference = Reference(path)
    made = synthesize(model, reference.run)
    assert made.failure is None and not made.warnings, (made.failure, made.warnings)
    assert len({tuple(map(str, s.shapes().items())) for s in made.samples}) >= 2
    assert made.informative >= 2
    same = verify(path, path, made.samples, effect="exact", reference=reference)
    assert same.verdict == "identical" and same.informative >= 2 and same.exercised > 0.4
    wrong = faulty(path)
    if wrong is not None:
        assert verify(path, wrong, made.samples, reference=reference, coverage=False).verdict == "different"
