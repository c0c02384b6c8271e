"""Real models through the importer: public ones and the project's recipes, against ONNX Runtime, and through torch.export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from graphopt.errors import InputError  # noqa: E402
from graphopt.formats import load_model  # noqa: E402
from graphopt.importing import to_torch  # noqa: E402
from graphopt.programs.convert import SAME, convert, runs  # noqa: E402
from graphopt.verification import Reference, synthesize, verify  # noqa: E402
from models.recipes import RECIPES, export  # noqa: E402
from models.zoo import MODELS, fetch  # noqa: E402

#: Models of which torch.export makes a program for one value of an input alone, with that input.
FIXED = {"silero_vad": "sr"}


def domains(path: Path) -> set[str]:
    """The domains of operators that a model uses beside ONNX's own."""
    graph = onnx.load(path, load_external_data=False).graph
    return {node.domain for node in graph.node} - {"", "ai.onnx", "ai.onnx.ml"}


def check(path: Path, fixed: str | None = None) -> None:
    model, reference = load_model(path), Reference(path, threads=1)
    samples = synthesize(model.graph, reference.run).samples
    sizes = {tuple(map(tuple, s.shapes().values())) for s in samples}
    module = to_torch(path)
    found = verify(None, runs(module), samples, reference=reference, coverage=False)
    assert found.verdict in SAME, [o.reason for o in found.outputs]
    assert len(sizes) >= 2 or not any(not isinstance(d, int) for v in model.graph.graph.inputs for d in v.shape or ())
    program = convert(model, reference, samples)
    assert program.same, [o.reason for o in program.verification.outputs]
    assert program.verification.samples > 0 and list(program.values) == ([fixed] if fixed is not None else [])


@pytest.mark.zoo
@pytest.mark.parametrize("name", MODELS)
def test_zoo(name: str) -> None:
    path = Path(fetch(name))
    other = domains(path)
    if other:
        with pytest.raises(InputError, match="cannot be imported into torch"):
            to_torch(path)
        pytest.skip(f"operators of {', '.join(sorted(other))}")
    check(path, FIXED.get(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "bert_base", "vit_tiny", "unet", "gpt2_small", "lstm"])
@pytest.mark.parametrize("how", ["legacy", "dynamo"])
def test_recipes(name: str, how: str, tmp_path: Path) -> None:
    check(export(RECIPES[name], tmp_path / "model.onnx", how, small=True))


def test_a_model_of_its_own_weights_answers_as_before(tmp_path: Path) -> None:
    """The state dict of a module fits what is imported of its export."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU()).eval()
    with torch.no_grad():  # all unlike, for the exporter makes one of equal ones
        for value in (net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var):
            value.uniform_(0.5, 1.5)
    path = tmp_path / "net.onnx"
    x = torch.randn(2, 2, 8, 8)
    torch.onnx.export(net, (x,), path, dynamo=False, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE)
    module = to_torch(path)
    names = set(module.state_dict())
    assert names == {n for n in net.state_dict() if not n.endswith("num_batches_tracked")}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    module.load_state_dict(net.state_dict(), strict=False)
    np.testing.assert_allclose(module(x).detach().numpy(), net(x).detach().numpy(), rtol=1e-5, atol=1e-6)
