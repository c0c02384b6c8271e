"""merge-affine-chains and fold-input-normalization on ATen graphs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402


def values(*shape: int):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7)) + 0.5


class Function(nn.Module):
    """A function of x and of buffers a and b."""

    def __init__(self, function, a=None, b=None) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    def forward(self, x):
        return self.function(x, self.a, self.b)


@pytest.mark.parametrize(("function", "left"), [
    (lambda x, a, b: x * a * b, {"mul": 1}),
    (lambda x, a, b: x + a + b, {"add": 1}),
    (lambda x, a, b: x * 2 * 3 + 1 - 4, {"mul": 1, "add": 1}),
    (lambda x, a, b: ((x + a) / 3) * b - 1, {"mul": 1, "add": 1}),
    (lambda x, a, b: -(x * a), {"mul": 1}),
    (lambda x, a, b: 1 - (2 - x), {"add": 1}),
    (lambda x, a, b: 3 - (x + 1), {"rsub": 1}),
    (lambda x, a, b: a - (x + b), {"sub": 1}),
    (lambda x, a, b: -(-x), {}),
    (lambda x, a, b: torch.sub(x, a, alpha=2) - b, {"add": 1}),
])  # fmt: skip
def test_chains(function, left):
    module, x = Function(function, values(3, 1, 1), values(3, 4, 1) * 1.7), values(2, 3, 4, 5)
    candidate = rewritten(exported(module, x), "merge-affine-chains")
    if not left:
        assert "cancel" in refusals(candidate)[0] and not candidate.applications
    else:
        assert ops(result(candidate)) == left
    assert_same(module, result(candidate), (x,))


@pytest.mark.parametrize(("function", "reason"), [
    (lambda x, a, b: x + 2.0**23 - 2.0**23, "cancel"),
    (lambda x, a, b: x * 1e-30 * 1e-30, "too small"),
    (lambda x, a, b: x * 1e30 * 1e30, "would not be finite"),
    (lambda x, a, b: x * a / 0.0, "divides by zero"),
    (lambda x, a, b: x * a * b, "widens the value"),
    (lambda x, a, b: torch.sigmoid(x) * 2 * 3, "the runtime fuses"),
])  # fmt: skip
def test_chains_that_are_refused(function, reason):
    module, x = Function(function, values(3, 1, 1), values(6, 3, 1, 1)), values(1, 3, 4, 5)
    candidate = rewritten(exported(module, x), "merge-affine-chains")
    assert not candidate.applications and reason in refusals(candidate)[0]
    assert_same(module, result(candidate), (x,))


@pytest.mark.parametrize("function", [
    lambda x, a, b: ((y := x * 2), y * 3),
    lambda x, a, b: (x * a) * (x + a),
    lambda x, a, b: (x.to(torch.int32) + 1) + 2,
    lambda x, a, b: x.to(torch.float16) * 2 * a,
])  # fmt: skip
def test_what_is_no_chain_is_left(function):
    module, x = Function(function, values(3, 1, 1)), values(2, 3, 4, 5)
    candidate = rewritten(exported(module, x), "merge-affine-chains")
    assert ops(result(candidate)) == ops(exported(module, x))
    assert_same(module, result(candidate), (x,))


class Normalized(nn.Module):
    """(x - mean) / std before a convolution, in some spelling."""

    def __init__(self, function, layer) -> None:
        super().__init__()
        self.function, self.layer = function, layer
        self.register_buffer("mean", values(3, 1, 1))
        self.register_buffer("std", values(3, 1, 1) + 1)

    def forward(self, x):
        return self.layer(self.function(x, self.mean, self.std))


SPELLINGS = {
    "sub div": lambda x, mean, std: (x - mean) / std,
    "mul add": lambda x, mean, std: x * std + mean,
    "numbers": lambda x, mean, std: x / 255 * 2 - 1,
    "three": lambda x, mean, std: (x / 255 - mean) / std,
    "uint8": lambda x, mean, std: ((x * 255).to(torch.uint8).float() - mean) / std,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("padding", [0, 1])
def test_normalization(spelling, padding):
    module, x = Normalized(SPELLINGS[spelling], nn.Conv2d(3, 4, 3, padding=padding)), values(2, 3, 8, 8)
    if spelling == "uint8":
        x = (x * 255).to(torch.uint8)
        module.function = lambda x, mean, std: (x.float() - mean) / std
    candidate = rewritten(exported(module, x), "fold-input-normalization")
    assert sum(n for name, n in ops(result(candidate)).items() if name in ("add", "sub", "mul", "div")) == (1 if padding else 0)
    assert_same(module, result(candidate), (x,), rtol=3e-5)


@pytest.mark.parametrize(("function", "layer", "reason"), [
    (lambda x, mean, std: x - mean, nn.Conv2d(3, 4, 3, padding=1), "does not reach the border"),
    (lambda x, mean, std: (x - mean) * 0, nn.Conv2d(3, 4, 3, padding="same"), None),
    (lambda x, mean, std: (x - mean) / std, nn.Conv2d(8, 4, 3), "not one value a channel"),
])  # fmt: skip
def test_normalizations_that_are_refused(function, layer, reason):
    module, x = Normalized(function, layer), values(2, layer.in_channels, 8, 8)
    if layer.in_channels == 8:
        module.mean, module.std = values(8), values(8)  # along the last axis
    candidate = rewritten(exported(module, x), "fold-input-normalization")
    if reason is not None:
        assert reason in refusals(candidate)[0] and not candidate.applications
    assert_same(module, result(candidate), (x,))


def test_a_normalization_behind_an_activation_is_no_input():
    module, x = Normalized(lambda x, mean, std: (torch.relu(x) - mean) / std, nn.Conv2d(3, 4, 3)), values(2, 3, 8, 8)
    candidate = rewritten(exported(module, x), "fold-input-normalization")
    assert not candidate.applications


def test_a_normalized_input_that_others_use_is_refused():
    class Two(Normalized):
        def forward(self, x):
            y = (x - self.mean) / self.std
            return self.layer(y), y

    module, x = Two(None, nn.Conv2d(3, 4, 3)), values(2, 3, 8, 8)
    candidate = rewritten(exported(module, x), "fold-input-normalization")
    assert "also an output" in refusals(candidate)[0] and not candidate.applications
    assert_same(module, result(candidate), (x,))
