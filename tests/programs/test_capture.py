"""Capture: dims found, names, and what is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from graphopt.errors import InputError  # noqa: E402
from graphopt.programs.capture import capture  # noqa: E402


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self.norm(self.conv(image)).relu_()}


def test_dims_are_found_and_named() -> None:
    module = Net().eval()
    captured = capture(module, torch.randn(1, 3, 8, 8))
    assert captured.dims == {"image": {0: "batch", 2: "height", 3: "width"}}
    assert captured.ranges["batch"] == (1, None)
    assert captured.outputs == ("features",)
    assert not any(str(node.target).endswith("relu_.default") for node in captured.program.graph.nodes)
    for sizes in ({"batch": 1}, {"batch": 3, "height": 5, "width": 9}):
        args, kwargs = captured.call_with(captured.resized(sizes))
        torch.testing.assert_close(captured.program.module()(*args, **kwargs), module(*args, **kwargs))


def test_training_mode_is_refused_unless_eval_is_asked_for() -> None:
    module = Net()
    with pytest.raises(InputError, match=r"Net: the module is in training mode: call \.eval\(\)"):
        capture(module, torch.randn(1, 3, 8, 8))
    captured = capture(module, torch.randn(1, 3, 8, 8), eval=True)
    assert module.training and module.norm.training and int(module.norm.num_batches_tracked) == 0
    assert "captured as in eval mode" in captured.notes[0]
