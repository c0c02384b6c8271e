"""What was imported can be tuned: parameters under their names, gradients that are right, a step that changes the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from graphopt.importing import to_torch  # noqa: E402
from tests.support import array, model, node  # noqa: E402


def conv_bn(dtype: str = "float32") -> onnx.ModelProto:
    """A convolution, a BatchNorm, a pool and a linear layer, named as torch's exporter names them."""
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {
        "layers.0.weight": array(4, 2, 3, 3, dtype=dtype),
        "layers.1.weight": array(4, seed=1, dtype=dtype),
        "layers.1.bias": array(4, seed=2, dtype=dtype),
        "layers.1.running_mean": array(4, seed=3, dtype=dtype),
        "layers.1.running_var": array(4, seed=4, low=0.5, dtype=dtype),
        "head.weight": array(3, 4, seed=5, dtype=dtype),
        "head.bias": array(3, seed=6, dtype=dtype),
    }
    nodes = [
        node("Conv", ["x", "layers.0.weight"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", *(f"layers.1.{n}" for n in ("weight", "bias", "running_mean", "running_var"))], ["b"]),
        node("Tanh", ["b"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    return model(nodes, {"x": ["n", 2, 6, 6]}, {"y": ["n", 3]}, weights, types={"x": element, "y": element})


def imported(dtype: str = "float32"):
    return to_torch(ir.from_proto(conv_bn(dtype)))


def test_weights_are_parameters_and_statistics_buffers_under_their_names() -> None:
    module = imported()
    assert [n for n, _ in module.named_parameters()] == [
        "layers.0.weight", "layers.1.weight", "layers.1.bias", "head.weight", "head.bias",
    ]  # fmt: skip
    assert [n for n, _ in module.named_buffers()] == ["layers.1.running_mean", "layers.1.running_var"]
    assert module.meta["onnx"]["tensors"]["layers.0.weight"] == "layers.0.weight"
    assert not module.training


def test_a_step_of_descent_changes_the_answer_and_lowers_the_loss() -> None:
    module = imported()
    x, wanted = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    before = module(x)
    loss = torch.nn.functional.mse_loss(before, wanted)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    optimizer.step()
    after = module(x)
    assert not torch.allclose(before, after)
    assert torch.nn.functional.mse_loss(after, wanted) < loss


def test_gradients_agree_with_finite_differences() -> None:
    module = imported("float64")
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    names, parameters = zip(*module.named_parameters(), strict=True)

    def answer(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(answer, tuple(p.detach().clone().requires_grad_() for p in parameters))


def test_it_is_exported_with_a_dynamic_batch_and_survives_saving(tmp_path: Path) -> None:
    module = imported()
    program = torch.export.export(module, (torch.ones(2, 2, 6, 6),), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert "aten.conv2d.default" in {str(n.target) for n in program.graph.nodes}
    torch.save(module, tmp_path / "module.pt")
    again = torch.load(tmp_path / "module.pt", weights_only=False)
    x = torch.randn(5, 2, 6, 6)
    torch.testing.assert_close(program.module()(x), module(x))
    torch.testing.assert_close(again(x), module(x))


def test_tuning_does_not_touch_the_file(tmp_path: Path) -> None:
    """Parameters are copies: tuning writes neither to the file nor to what is mapped from it."""
    path = tmp_path / "m.onnx"
    onnx.save(conv_bn(), path)
    bytes_before = path.read_bytes()
    module = to_torch(path)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert path.read_bytes() == bytes_before
    assert to_torch(path)(torch.ones(1, 2, 6, 6)).abs().sum() > 0
