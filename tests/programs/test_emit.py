"""Emission: names, dims and numbers in ONNX; state dict, mutation and the file in .pt2; what is refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from graphopt.errors import InputError, OutputError  # noqa: E402
from graphopt.model import Model  # noqa: E402
from graphopt.programs.capture import Captured, capture  # noqa: E402
from graphopt.programs.emit import to_onnx, to_pt2  # noqa: E402
from graphopt.programs.module import as_module  # noqa: E402
from graphopt.programs.onnx_ready import stateless  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tensors_of(module: nn.Module, captured: Captured, feeds: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    args, kwargs = captured.call_with(feeds)
    with torch.no_grad():
        return [leaf.detach() for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]


def check_onnx(module: nn.Module, captured: Captured, path: Path, sizes: dict[str, int] | None = None) -> None:
    """ONNX Runtime, its optimizations off, gives what the eager module does, under the captured names."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = captured.resized(sizes or {})
    assert [one.name for one in session.get_inputs()] == list(captured.inputs)
    assert [one.name for one in session.get_outputs()] == list(captured.outputs)
    got = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    for ours, theirs in zip(got, tensors_of(module, captured, feeds), strict=False):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.graph)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.norm(self.conv(image)).relu_()
        return {"features": features, "scores": self.head(self.pool(features).flatten(1)).softmax(-1)}


def test_onnx_has_the_names_of_arguments_outputs_parameters_and_dims(tmp_path: Path) -> None:
    module = Net().eval()
    captured = capture(module, torch.randn(1, 3, 8, 8))
    path = tmp_path / "net.onnx"
    model = to_onnx(captured.program, captured, path)
    graph = model.graph.graph
    assert operators(model)["BatchNormalization"] == 1 and not model.graph.functions
    assert model.graph.opset_imports == {"": 20}
    assert set(graph.initializers) >= {"conv.weight", "conv.bias", "norm.weight", "norm.running_mean", "head.weight"}
    assert [str(dim) for dim in graph.inputs[0].shape] == ["batch", "3", "height", "width"]
    assert isinstance(graph.inputs[0].shape[1], int)
    assert [str(dim) for dim in graph.outputs[1].shape] == ["batch", "5"]
    for sizes in ({}, {"batch": 3, "height": 6, "width": 11}):
        check_onnx(module, captured, path, sizes)
    assert [made.name for made in tmp_path.iterdir()] == ["net.onnx"]


def test_without_a_path_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    captured = capture(nn.Linear(4, 2).eval(), torch.randn(3, 4))
    assert to_onnx(captured.program, captured).path is None
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


class Blocks(nn.Module):
    """Attention in two ways, GELU, LayerNorm and RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.rms, self.act = nn.LayerNorm(8), nn.RMSNorm(8), nn.GELU()

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        causal = nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)  # of rank 3
        masked = nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return self.act(self.norm(self.attention(x, x, x)[0])) + self.rms(causal) + masked


def test_norms_and_attention_of_any_rank(tmp_path: Path) -> None:
    module = Blocks().eval()
    captured = capture(module, (torch.randn(2, 5, 8), torch.ones(2, 5, 5, dtype=torch.bool).tril()))
    model = to_onnx(captured.program, captured, tmp_path / "net.onnx")
    assert operators(model)["LayerNormalization"] == 1 and operators(model)["Gelu"] == 1
    check_onnx(module, captured, tmp_path / "net.onnx", {"batch": 3, "seq": 7})


def test_a_newer_opset_is_used_only_when_asked_for(tmp_path: Path) -> None:
    module = Blocks().eval()
    captured = capture(module, (torch.randn(2, 5, 8), torch.ones(2, 5, 5, dtype=torch.bool).tril()))
    model = to_onnx(captured.program, captured, opset=23)
    assert model.graph.opset_imports[""] == 23 and operators(model)["Attention"] == 2


class SameTwice(nn.Module):
    """Outputs that are one value, an input and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> tuple[object, ...]:
        y = x * 2
        return y, y, x, self.output, None, 3, x.shape[0]


def test_outputs_that_are_one_value_or_an_input_or_no_tensor(tmp_path: Path) -> None:
    module = SameTwice().eval()
    captured = capture(module, torch.randn(3, 4))
    model = to_onnx(captured.program, captured, tmp_path / "net.onnx")
    assert captured.outputs == ("output_0", "output_1", "output_2", "output_3", "output_6")
    assert any("2 outputs that are no tensors are left out" in note for note in model.notes)
    check_onnx(module, captured, tmp_path / "net.onnx", {"batch": 2})


class NamedLikeItsParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.output = nn.Parameter(torch.randn(4))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.weight + self.output


def test_an_input_and_an_output_named_as_parameters_are(tmp_path: Path) -> None:
    module = NamedLikeItsParameter().eval()
    captured = capture(module, torch.randn(3, 4))
    assert captured.outputs == ("output_2",)
    model = to_onnx(captured.program, captured, tmp_path / "net.onnx")
    assert model.notes == ["the parameter 'weight' is called 'weight_1' in the ONNX model, where 'weight' is an input"]
    check_onnx(module, captured, tmp_path / "net.onnx")


class Running(nn.Module):
    """A running sum; `counted` says whether the answer depends on it."""

    def __init__(self, counted: bool) -> None:
        super().__init__()
        self.counted = counted
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x.sum(0))
        return x + self.total if self.counted else x * 2


def test_a_buffer_that_changes_is_kept_in_pt2_and_never_wrong_in_onnx(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    captured = capture(Running(True).eval(), x)
    with pytest.raises(InputError, match="Running: its answers depend on 'total', which it changes when it runs; an ONNX model cannot"):
        to_onnx(captured.program, captured, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
    saved = capture(to_pt2(captured.program, tmp_path / "net.pt2"))
    eager, ours, again = Running(True).eval(), as_module(captured.program), as_module(saved.program)
    for _ in range(3):
        expected = eager(x)
        torch.testing.assert_close(ours(x), expected)
        torch.testing.assert_close(again(x), expected)
    counts = capture(Running(False).eval(), x)
    model = to_onnx(counts.program, counts, tmp_path / "net.onnx")
    assert model.notes == ["the ONNX model does not change 'total', on which no output depends"]
    check_onnx(Running(False).eval(), counts, tmp_path / "net.onnx")
    without = stateless(counts)
    assert not without.program.graph_signature.buffers_to_mutate and without.notes[-1] == model.notes[0]
    torch.testing.assert_close(as_module(without.program)(x), x * 2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.words(ids)))


def test_pt2_keeps_the_state_dict_and_the_names(tmp_path: Path) -> None:
    module = Tied().eval()
    stated = {"ids": {0: "lines", 1: "words"}}
    captured = capture(module, torch.randint(0, 11, (2, 5)), dynamic_shapes=stated, outputs=("scores",))
    saved = capture(to_pt2(captured.program, tmp_path / "net.pt2", captured))
    assert saved.dims == {"ids": {0: "lines", 1: "words"}} and saved.outputs == ("scores",)
    assert saved.ranges == captured.ranges
    assert set(saved.program.state_dict) == {"words.weight", "head.weight"} and saved.dims == captured.dims
    assert set(as_module(captured.program).state_dict()) == set(module.state_dict())
    ids = torch.randint(0, 11, (3, 7))
    torch.testing.assert_close(saved.reference(ids), module(ids))
    to_onnx(captured.program, captured, tmp_path / "net.onnx")
    check_onnx(module, captured, tmp_path / "net.onnx", {"lines": 4, "words": 2})


def test_pt2_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    captured = capture(nn.Linear(4, 2).eval(), torch.randn(3, 4))
    path = to_pt2(captured.program, tmp_path / "net.pt2")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is the input, which is not overwritten"):
        to_pt2(captured.program, path, source=path)
    assert path.read_bytes() == before and to_pt2(captured.program, path, source=path, in_place=True) == path
    with pytest.raises(OutputError, match="there is no folder"):
        to_pt2(captured.program, tmp_path / "absent" / "net.pt2")
    with pytest.raises(OutputError, match="is a folder"):
        to_pt2(captured.program, tmp_path)
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if not os.access(locked, os.W_OK):
        with pytest.raises(OutputError, match="cannot be written"):
            to_pt2(captured.program, locked / "net.pt2")
    assert sorted(made.name for made in tmp_path.iterdir()) == ["locked", "net.pt2"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = capture(nn.Linear(4, 2).eval(), torch.randn(3, 4))
    path = tmp_path / "net.pt2"
    path.write_bytes(b"old")

    def fails(program: object, file: str, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.export.save", fails)
    with pytest.raises(OutputError, match=r"net\.pt2: cannot be written: No space left on device"):
        to_pt2(captured.program, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


class Untranslated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x @ x.mT)


def test_an_operator_without_a_translation_is_named(tmp_path: Path) -> None:
    captured = capture(Untranslated().eval(), torch.randn(3, 3))
    with pytest.raises(InputError, match=r"Untranslated: has no ONNX translation: .*_linalg_eigh") as caught:
        to_onnx(captured.program, captured, tmp_path / "net.onnx")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_control_flow_is_kept(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda a: a * 2, lambda a: a - 1, (x,))

    module = Branches().eval()
    captured = capture(module, torch.randn(3, 4))
    assert operators(to_onnx(captured.program, captured, tmp_path / "net.onnx"))["If"] == 1
    for sign in (1.0, -1.0):
        feeds = {"x": torch.full((3, 4), sign)}
        got = ort.InferenceSession(tmp_path / "net.onnx").run(None, {"x": feeds["x"].numpy()})[0]
        np.testing.assert_allclose(got, tensors_of(module, captured, feeds)[0].numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bert_base", "efficientnet_b0", "gpt2_small", "llama_like", "lstm", "repvgg_a0", "resnet18", "unet", "vit_tiny"]
)
def test_the_model_of_a_module_optimizes_to_no_more_nodes_than_that_of_an_export(name: str, tmp_path: Path) -> None:
    import graphopt
    from graphopt.run import optimize
    from models.recipes import RECIPES, export

    recipe = RECIPES[name]

    def nodes(path: Path) -> int:
        run = optimize(graphopt.Request(model=path, verify="off", bench=False))
        return run.report.to_dict()["after"]["nodes"]

    dims = recipe.dynamic("dynamo-raw")
    captured = capture(recipe.build(small=True), recipe.example_inputs(), outputs=recipe.outputs, dynamic_shapes=dims)
    to_onnx(captured.program, captured, tmp_path / "captured.onnx")
    exports = [nodes(export(recipe, tmp_path / f"{how}.onnx", how, small=True)) for how in ("legacy", "dynamo-raw", "dynamo")]
    assert nodes(tmp_path / "captured.onnx") <= min(exports)
