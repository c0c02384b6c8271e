"""Modules that write in place: the same answers and gradients, and nothing of the caller's is written to."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from graphopt.programs.in_place import written_in_place  # noqa: E402
from tests.aten.support import exported  # noqa: E402


class Block(nn.Module):
    """Convolutions with activations, a residual sum in either order, a value that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        y = nn.functional.silu(self.one(x))
        z = x + self.two(y)
        a = self.three(z)
        b = torch.relu(a) + nn.functional.hardtanh(a)
        return nn.functional.hardswish(self.head((b + y).mean((2, 3)))), a


def written(module):
    return sorted(str(n.target).split(".")[1] for n in module.graph.nodes if n.op == "call_function" and str(n.target).count("_."))


def test_answers_gradients_and_inputs():
    module, x = Block().eval(), torch.randn(2, 4, 6, 6)
    made = written_in_place(exported(module, x).module())
    assert written(made) == ["add_", "add_", "hardswish_", "silu_"]
    kept = x.clone()
    results = made(x)
    assert torch.equal(x, kept)
    for found, expected in zip(results, module(x), strict=True):
        assert torch.equal(found, expected)
    grads = []
    for one in (copy.deepcopy(module), copy.deepcopy(made)):
        given = x.clone().requires_grad_()
        for parameter in one.parameters():
            parameter.requires_grad_()
        first, second = one(given)
        (first.sum() + second.square().sum()).backward()
        grads.append([given.grad, *(p.grad for _, p in sorted(one.named_parameters()))])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("function", [
    lambda x, w: torch.relu(x),  # an input
    lambda x, w: torch.relu(x.view(2, 8)),  # a view of an input
    lambda x, w: torch.relu(w),  # a parameter
    lambda x, w: (torch.relu(y := x @ w), y),  # an output
    lambda x, w: torch.relu(y := x @ w) + y,  # a value that is read again
    lambda x, w: torch.add(x @ w, (x @ w)[:1], alpha=2),  # a factor
    lambda x, w: (x @ w)[:1] + torch.ones(3, 4, 4),  # a sum that is larger than what it would be written to
    lambda x, w: nn.functional.linear(x, w).to(torch.float16) + 1.0,  # a number
    lambda x, w: nn.functional.linear(x, w) + torch.ones(4, dtype=torch.float64),  # another type
    lambda x, w: (y := nn.functional.linear(x, w)) + y,  # one value twice
])  # fmt: skip
def test_what_is_not_written_to(function):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return function(x, self.w)

    module, x = Plain().eval(), torch.randn(1, 4, 4)
    if "8" in str(function.__code__.co_consts):
        x = torch.randn(4, 4)
    made = written_in_place(exported(module, x).module())
    kept = x.clone()
    assert written(made) == []
    for a, b in zip(torch.utils._pytree.tree_leaves(made(x)), torch.utils._pytree.tree_leaves(module(x)), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(x, kept)


def test_dynamic_sizes():
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    program = exported(module, torch.randn(2, 4, 6, 6), dynamic=({0: torch.export.Dim("batch")},))
    made = written_in_place(program.module())
    assert written(made) == ["relu_"]
    x = torch.randn(5, 4, 6, 6)
    assert torch.equal(made(x), module(x))
