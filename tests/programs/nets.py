"""Small modules, captured once, and passes on torch programs that do wrong on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from graphopt.aten import drive  # noqa: E402
from graphopt.programs.capture import capture  # noqa: E402
from graphopt.programs.captured import Captured  # noqa: E402
from graphopt.rewriting import Effect, Pass  # noqa: E402


class ConvNet(nn.Module):
    """float32 [batch, 3, height, width] to logits [batch, 5]: two convolutions, each with a BatchNorm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        for norm in (self.norm1, self.norm2):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.6, 1.4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.first(image)))
        x = torch.relu_(self.norm2(self.second(x)))
        return self.head(x.mean((2, 3)))


class Text(nn.Module):
    """Ids [batch, seq] of a vocabulary of 23, a mask and types of them, to float32 [batch, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds, self.head = nn.Embedding(23, 6), nn.Embedding(2, 6), nn.Linear(6, 6)

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.kinds(kinds)
        kept = attention_mask[:, :, None].to(x.dtype)
        return torch.sigmoid(self.head((x * kept).sum(1) / kept.sum(1)))


class Counting(nn.Module):
    """Counts its calls in a buffer, keeps the last input in another, and adds both to what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(2, 4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        y = self.linear(x) + self.last * self.calls
        self.last.copy_(x)
        return y


@cache
def conv_net() -> tuple[nn.Module, Captured]:
    torch.manual_seed(0)
    module = ConvNet().eval()
    return module, capture(module, torch.randn(2, 3, 8, 8), dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}})


@cache
def text() -> tuple[nn.Module, Captured]:
    torch.manual_seed(0)
    module = Text().eval()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = (torch.randint(3, 9, (2, 5)), mask, torch.zeros(2, 5, dtype=torch.int64))
    return module, capture(module, inputs, dynamic_shapes={name: {0: "batch", 1: "seq"} for name in ("ids", "attention_mask", "kinds")})


@cache
def counting() -> tuple[nn.Module, Captured]:
    torch.manual_seed(0)
    module = Counting().eval()
    return module, capture(module, torch.randn(2, 4), dynamic_shapes={})


@dataclass(frozen=True)
class ReluToAbs(Pass):
    """Replace the second ReLU by abs, which is wrong, and others by clamp_min, which is right."""

    name = "relu-to-abs"
    kinds = frozenset({"torch"})
    effect = Effect.EXACT

    def run_aten(self, context: Any) -> None:
        def rewrite(node: Any, editor: Any) -> None:
            if node.name.endswith("_1"):
                editor.replace(node, editor.call("aten.abs.default", [node.args[0]]))
            else:
                editor.replace(node, editor.call("aten.clamp_min.default", [node.args[0], 0]))

        drive(context, ["aten.relu.default"], rewrite)


@dataclass(frozen=True)
class Untranslatable(Pass):
    """Replace the second ReLU by operators of which one has no ONNX translation."""

    name = "untranslatable"
    kinds = frozenset({"torch"})
    effect = Effect.ROUNDING

    def run_aten(self, context: Any) -> None:
        def rewrite(node: Any, editor: Any) -> None:
            if node.name.endswith("_1"):
                same = editor.call("aten.clamp_min.default", [node.args[0], 0])
                editor.replace(node, editor.call("aten.nextafter.default", [same, same]))

        drive(context, ["aten.relu.default"], rewrite)


@dataclass(frozen=True)
class SlowDownRelu(Pass):
    """Put many needless exact operators behind the first ReLU."""

    name = "slow-down-relu"
    kinds = frozenset({"torch"})
    effect = Effect.EXACT

    def run_aten(self, context: Any) -> None:
        def rewrite(node: Any, editor: Any) -> None:
            if not node.name.endswith("_1"):
                value = editor.call("aten.clamp_min.default", [node.args[0], 0])
                for _ in range(200):
                    value = editor.call("aten.abs.default", [value])
                editor.replace(node, value)

        drive(context, ["aten.relu.default"], rewrite)
