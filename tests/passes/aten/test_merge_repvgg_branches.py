"""merge-repvgg-branches on ATen graphs: RepVGG, MobileOne, averages, and what is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from models.recipes import RECIPES  # noqa: E402
from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402
from tests.passes.aten.test_fuse_conv_bn import random_norms  # noqa: E402

PASSES = ("fuse-conv-bn", "merge-repvgg-branches")


def image(channels: int = 4, rank: int = 4):
    return torch.randn(2, channels, *[8] * (rank - 2), generator=torch.Generator().manual_seed(4))


class Branches(nn.Module):
    """The sum of its branches, each over the input."""

    def __init__(self, *branches) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


def conv(kernel, *, kind=nn.Conv2d, inputs: int = 4, outputs: int = 4, norm: bool = True, **options):
    options = {"padding": kernel // 2 if isinstance(kernel, int) else 0, "bias": False} | options
    layer = kind(inputs, outputs, kernel, **options)
    norms = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
    return nn.Sequential(layer, norms[kind](outputs)) if norm else layer


@pytest.mark.parametrize(("make", "rank"), [
    (lambda: Branches(conv(3), conv(1), nn.BatchNorm2d(4)), 4),  # RepVGG
    (lambda: Branches(conv(3, stride=2), conv(1, stride=2)), 4),
    (lambda: Branches(*(conv(3, groups=4) for _ in range(4)), conv(1, groups=4), nn.BatchNorm2d(4)), 4),  # MobileOne
    (lambda: Branches(conv(1), conv(1), nn.Identity()), 4),
    (lambda: Branches(conv(3), nn.AvgPool2d(3, 1, 1)), 4),  # Diverse Branch Block
    (lambda: Branches(conv(3), nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(4))), 4),
    (lambda: Branches(conv(2, padding=0, stride=2), nn.AvgPool2d(2)), 4),
    (lambda: Branches(conv(3, kind=nn.Conv1d), conv(1, kind=nn.Conv1d), nn.BatchNorm1d(4)), 3),
    (lambda: Branches(conv(3, kind=nn.Conv3d), conv(1, kind=nn.Conv3d), nn.BatchNorm3d(4)), 5),
    (lambda: Branches(conv(3, padding="same", norm=False, bias=True), conv(1, norm=False)), 4),
    (lambda: Branches(conv(3, dilation=2, padding=2), conv(1), nn.Identity()), 4),
    (lambda: Branches(conv(5), conv(3, outputs=4, padding=1, norm=False)), 4),
])  # fmt: skip
def test_branches_are_one_convolution(make, rank):
    module, x = random_norms(make()), image(rank=rank)
    program = result(rewritten(exported(module, x), *PASSES))
    assert ops(program) == {f"conv{rank - 2}d": 1}
    assert_same(module, program, (x,), rtol=2e-5)


def test_repvgg_has_one_convolution_a_block():
    recipe = RECIPES["repvgg_a0"]
    module, inputs = recipe.build(small=True), tuple(recipe.example_inputs().values())
    program = result(rewritten(exported(module, *inputs), *PASSES))
    assert ops(program) == {"conv2d": 22, "relu": 22, "mean": 1, "linear": 1}
    assert_same(module, program, inputs, rtol=2e-5)


def test_other_terms_of_the_sum_stay():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = conv(3), conv(1)

        def forward(self, x, y, z):
            return y + (self.one(x) + (z + self.two(x))) + torch.relu(x)

    module, inputs = random_norms(Residual()), (image(), image() * 2, image() + 1)
    program = result(rewritten(exported(module, *inputs), *PASSES))
    assert ops(program) == {"conv2d": 1, "add": 3, "relu": 1}
    assert_same(module, program, inputs, rtol=2e-5)


def test_a_branch_that_is_added_twice_counts_twice():
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = conv(3), conv(1)

        def forward(self, x):
            y = self.one(x)
            return (y + y) + self.two(x)

    module = random_norms(Doubled())
    program = result(rewritten(exported(module, image()), *PASSES))
    assert ops(program) == {"conv2d": 1}
    assert_same(module, program, (image(),), rtol=2e-5)


def test_two_inputs_make_two_convolutions():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([conv(3), conv(1), conv(3), conv(1)])

        def forward(self, x, y):
            a, b, c, d = self.parts
            return a(x) + c(y) + b(x) + d(y)

    module, inputs = random_norms(Two()), (image(), image() * 2)
    program = result(rewritten(exported(module, *inputs), *PASSES))
    assert ops(program) == {"conv2d": 2, "add": 1}
    assert_same(module, program, inputs, rtol=2e-5)


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: Branches(conv(3), conv(3, groups=2)), "differ in their groups"),
    (lambda: Branches(conv(3), conv(3, dilation=2, padding=2)), "differ in their dilations"),
    (lambda: Branches(conv(3), nn.AvgPool2d(3, 1, 1, count_include_pad=False)), "leaves out what it pads"),
    (lambda: Branches(conv(3), nn.AvgPool2d(3, 1, 1, divisor_override=4)), "a number of its own"),
    (lambda: Branches(conv(2, padding=0, stride=2), nn.AvgPool2d(2, ceil_mode=True)), "rounds the size of its output up"),
    (lambda: Branches(conv(1), nn.AvgPool2d(3, 1, 1)), "would compute more"),
    (lambda: Branches(conv((1, 3), padding=(0, 1)), conv((3, 1), padding=(1, 0))), "would compute more"),
    (lambda: Branches(conv(2, padding="same", norm=False), conv(1, norm=False)), "pad one side more"),
    (lambda: Branches(conv(3, padding=1, stride=2), conv(2, padding=0, stride=2)), "pad to different sizes"),
])  # fmt: skip
def test_refusals(make, reason):
    module = random_norms(make())
    x = image(4)
    candidate = rewritten(exported(module, x), *PASSES)
    assert any(reason in r for r in refusals(candidate)), refusals(candidate)
    assert not any(a.pass_name == "merge-repvgg-branches" for a in candidate.applications)
    assert_same(module, result(candidate), (x,))


class Used(nn.Module):
    """Two branches, of which others use a part."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.one, self.two, self.what = conv(3, norm=False), conv(1, norm=False), what

    def forward(self, x):
        a, b = self.one(x), self.two(x)
        if self.what == "branch":
            return a + b, a
        if self.what == "sum":
            y = a + b
            return y + self.one(torch.relu(x)), y
        return torch.add(a, b, alpha=2)


def test_a_branch_that_is_an_output_is_refused():
    module = Used("branch")
    candidate = rewritten(exported(module, image()), *PASSES)
    assert "has other users" in refusals(candidate)[0]
    assert_same(module, result(candidate), (image(),))


def test_an_inner_sum_that_is_an_output_is_merged_by_itself():
    module = Used("sum")
    program = result(rewritten(exported(module, image()), *PASSES))
    assert ops(program) == {"conv2d": 2, "add": 1, "relu": 1}
    assert_same(module, program, (image(),), rtol=2e-5)


def test_a_sum_with_a_factor_is_left():
    module = Used("factor")
    candidate = rewritten(exported(module, image()), *PASSES)
    assert not candidate.applications
    assert_same(module, result(candidate), (image(),))


def test_copies_of_a_shared_weight_are_refused():
    module = Branches(conv(3, norm=False), conv(1, norm=False))

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = module

        def forward(self, x):
            return self.block(torch.relu(self.block(x)))

    candidate = rewritten(exported(Twice(), image()), *PASSES, options={"merge-repvgg-branches": {"max-growth-bytes": 10}})
    assert "has other users" in refusals(candidate)[0] and not candidate.applications
    assert_same(Twice().eval(), result(candidate), (image(),))
