"""fuse-conv-bn on ATen graphs: every linear operator, and what is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402

NORM = "_native_batch_norm_legit_no_training"


def random_norms(module):
    """The module, with BatchNorm statistics that a wrong fold would not survive."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor in (part.running_mean, part.weight, part.bias):
                if tensor is not None:
                    tensor.data.normal_(0.5, 0.3, generator=generator)
            if part.running_var is not None:
                part.running_var.data.uniform_(0.5, 2, generator=generator)
    return module.eval()


def _input(rank: int, channels: int = 4):
    return torch.randn(2, channels, *[7] * (rank - 2), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rank", "make"),
    [
        (3, lambda bias: nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, bias=bias), nn.BatchNorm1d(6))),
        (4, lambda bias: nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=bias), nn.BatchNorm2d(6, eps=1e-3))),
        (4, lambda bias: nn.Sequential(nn.Conv2d(4, 6, 3, padding="same", bias=bias), nn.BatchNorm2d(6))),
        (4, lambda bias: nn.Sequential(nn.Conv2d(4, 6, 1, bias=bias), nn.BatchNorm2d(6, affine=False))),
        (5, lambda bias: nn.Sequential(nn.Conv3d(4, 6, 2, bias=bias), nn.BatchNorm3d(6))),
        (3, lambda bias: nn.Sequential(nn.ConvTranspose1d(4, 6, 3, bias=bias), nn.BatchNorm1d(6))),
        (4, lambda bias: nn.Sequential(nn.ConvTranspose2d(4, 6, 4, stride=2, groups=2, bias=bias), nn.BatchNorm2d(6))),
        (5, lambda bias: nn.Sequential(nn.ConvTranspose3d(4, 6, 2, bias=bias), nn.BatchNorm3d(6))),
        (2, lambda bias: nn.Sequential(nn.Linear(4, 6, bias=bias), nn.BatchNorm1d(6))),
    ],
)
def test_every_linear_operator_takes_the_normalization(rank, make, bias):
    module = random_norms(make(bias))
    x = _input(rank)
    program = result(rewritten(exported(module, x), "fuse-conv-bn"))
    assert ops(program)[NORM] == 0 and ops(program).total() == 1
    assert_same(module, program, (x,))


class Shared(nn.Module):
    """One convolution, called twice, before two normalizations."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        return self.one(self.conv(x)) + self.two(self.conv(x * 2))


def test_shared_convolution_before_two_normalizations():
    module = random_norms(Shared())
    program = result(rewritten(exported(module, _input(4)), "fuse-conv-bn"))
    assert ops(program)[NORM] == 0 and ops(program)["conv2d"] == 2
    assert_same(module, program, (_input(4),))


def test_copies_of_a_large_shared_weight_are_refused():
    module = random_norms(Shared())
    candidate = rewritten(exported(module, _input(4)), "fuse-conv-bn", options={"fuse-conv-bn": {"max-growth-bytes": 100}})
    assert "has other users, and a copy for this one would add 576 bytes" in refusals(candidate)[0]
    assert_same(module, result(candidate), (_input(4),))


class Twice(nn.Module):
    """One output of a convolution, read by two normalizations, or returned as well."""

    def __init__(self, returned: bool) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.returned = returned

    def forward(self, x):
        y = self.conv(x)
        return (self.one(y), y) if self.returned else self.one(y) + self.two(y)


@pytest.mark.parametrize(("returned", "reason"), [(True, "is also an output"), (False, "has 2 users")])
def test_a_value_that_others_read_is_refused(returned, reason):
    module = random_norms(Twice(returned))
    candidate = rewritten(exported(module, _input(4)), "fuse-conv-bn")
    assert reason in refusals(candidate)[0] and not candidate.applications
    assert_same(module, result(candidate), (_input(4),))


def test_linear_of_rank_3_has_its_channels_elsewhere():
    module = random_norms(nn.Sequential(nn.Linear(7, 7), nn.BatchNorm1d(4)))
    candidate = rewritten(exported(module, _input(3)), "fuse-conv-bn")
    assert "its channels are on axis 1" in refusals(candidate)[0]
    assert_same(module, result(candidate), (_input(3),))


def test_a_weight_that_is_computed_is_refused():
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x, weight):
            return self.norm(torch.conv2d(x, weight))

    module = random_norms(Computed())
    inputs = _input(4), torch.randn(4, 4, 1, 1)
    candidate = rewritten(exported(module, *inputs), "fuse-conv-bn")
    assert refusals(candidate) == ["the weight is not constant"]
    assert_same(module, result(candidate), inputs)


def test_a_variance_that_changes_is_refused():
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.norm(self.conv(x))
            self.norm.running_var.mul_(1.5)
            return y

    module = random_norms(Moving())
    candidate = rewritten(exported(module, _input(4)), "fuse-conv-bn")
    assert "'norm.running_var' changes from call to call" in refusals(candidate)[0]
    assert_same(module, result(candidate), (_input(4),), (_input(4),))


def test_negative_variance_is_refused():
    module = random_norms(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    module[1].running_var.fill_(-1)
    assert refusals(rewritten(exported(module, _input(4)), "fuse-conv-bn")) == ["a variance plus epsilon is not positive"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype):
    module = random_norms(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))).to(dtype)
    program = result(rewritten(exported(module, _input(4).to(dtype)), "fuse-conv-bn"))
    assert ops(program)[NORM] == 0 and all(p.dtype is dtype for p in program.parameters())
    assert_same(module, program, (_input(4).to(dtype),), rtol={torch.float64: 1e-12, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype])


class WrittenOver(nn.Module):
    """A ReLU that writes over the convolution's output, which is read again afterwards: by a normalization, or by a sum."""

    def __init__(self, normalized: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.normalized = normalized

    def forward(self, x):
        y = self.conv(x) if self.normalized else self.norm(self.conv(x))
        z = self.relu(y)
        return self.norm(y) + z if self.normalized else y + 2 * z


@pytest.mark.parametrize(("normalized", "left"), [(True, 1), (False, 0)])
def test_a_relu_in_place_on_a_value_that_is_used_elsewhere(normalized, left):
    module = random_norms(WrittenOver(normalized))
    program = result(rewritten(exported(module, _input(4)), "fuse-conv-bn", "prune-dead-nodes"))
    assert ops(program)[NORM] == left
    assert_same(module, program, (_input(4),))


def test_a_module_that_is_called_twice():
    part = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    module = random_norms(nn.Sequential(part, part))
    program = result(rewritten(exported(module, _input(4)), "fuse-conv-bn"))
    assert ops(program)[NORM] == 0 and ops(program)["conv2d"] == 2
    assert_same(module, program, (_input(4),))
