"""fuse-conv-bn on ATen graphs: other spellings of the two operators, and weights that are used in several places."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402
from tests.passes.aten.test_fuse_conv_bn import NORM, random_norms  # noqa: E402

aten = torch.ops.aten


def image(batch: int = 2):
    return torch.randn(batch, 4, 7, 7, generator=torch.Generator().manual_seed(3))


class Spelled(nn.Module):
    """A convolution and a normalization, each called by the name of its operator."""

    def __init__(self, norm: str, training: bool = False, general: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.spelling, self.flag, self.general = norm, training, general

    def forward(self, x):
        conv, norm = self.conv, self.norm
        if self.general:
            x = aten.convolution(x, conv.weight, conv.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        else:
            x = conv(x)
        statistics = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if self.spelling == "native":
            return aten.native_batch_norm(x, *statistics, self.flag, 0.1, 1e-3)[0]
        if self.spelling == "no-update":
            return aten._batch_norm_no_update(x, *statistics, 0.1, 1e-3)[0]
        if self.spelling == "no-stats":
            return aten._native_batch_norm_legit.no_stats(x, norm.weight, norm.bias, True, 0.1, 1e-3)[0]
        return norm(x)


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("norm", ["module", "native", "no-update"])
def test_spellings(norm, general):
    module = random_norms(Spelled(norm, general=general))
    program = result(rewritten(exported(module, image()), "fuse-conv-bn"))
    assert sorted(ops(program)) == ["convolution" if general else "conv2d"]
    assert_same(module, program, (image(),))


def test_the_spelling_of_the_gpu():
    module = random_norms(Spelled("module"))
    program = exported(module, image())
    for node in program.graph.nodes:
        if NORM in str(node.target):
            x, *statistics, momentum, epsilon = node.args
            node.target, node.args = aten.cudnn_batch_norm.default, (x, *statistics, False, momentum, epsilon)
    program = result(rewritten(program, "fuse-conv-bn"))
    assert ops(program) == {"conv2d": 1}
    assert_same(module, program, (image(),))


@pytest.mark.parametrize(("norm", "training", "reason"), [
    ("native", True, "training mode"), ("no-stats", False, "training mode"),
])  # fmt: skip
def test_statistics_of_the_batch_are_refused(norm, training, reason):
    module = random_norms(Spelled(norm, training))
    candidate = rewritten(exported(module, image()), "fuse-conv-bn")
    assert not candidate.applications and reason in refusals(candidate)[0]


class Again(nn.Module):
    """A convolution and its normalization, called `times` times."""

    def __init__(self, times: int = 3) -> None:
        super().__init__()
        self.conv, self.norm, self.times = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), times

    def forward(self, x):
        for _ in range(self.times):
            x = torch.relu(self.norm(self.conv(x)))
        return x


def test_a_module_that_is_called_again_keeps_one_weight():
    module = random_norms(Again())
    program = result(rewritten(exported(module, image()), "fuse-conv-bn", options={"fuse-conv-bn": {"max-growth-bytes": 0}}))
    assert ops(program) == {"conv2d": 3, "relu": 3} and len([n for n in program.state_dict if "weight" in n]) == 1
    assert_same(module, program, (image(),))


def test_one_call_held_back_leaves_the_others_their_copy():
    from graphopt.pipeline.runner import Hold

    module = random_norms(Again())
    candidate = rewritten(exported(module, image()), "fuse-conv-bn", hold=Hold(applications=frozenset({1})))
    assert_same(module, result(candidate), (image(),))


class Tied(nn.Module):
    """Two convolutions with one weight, of which only the first may be normalized."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, stride=2)
        self.two.weight = self.one.weight
        self.norm, self.other, self.both = nn.BatchNorm2d(4), nn.BatchNorm2d(4), both

    def forward(self, x):
        y = self.two(x)
        return self.norm(self.one(x)).sum() + (self.other(y) if self.both else y)


@pytest.mark.parametrize("both", [False, True])
def test_tied_weights(both):
    module = random_norms(Tied(both))
    program = result(rewritten(exported(module, image()), "fuse-conv-bn"))
    assert ops(program)[NORM] == 0
    assert_same(module, program, (image(),))


@pytest.mark.parametrize("both", [False, True])
def test_tied_weights_are_not_copied_where_that_is_too_much(both):
    module = random_norms(Tied(both))
    candidate = rewritten(exported(module, image()), "fuse-conv-bn", options={"fuse-conv-bn": {"max-growth-bytes": 10}})
    assert "has other users" in refusals(candidate)[0] and ops(result(candidate))[NORM] >= 1
    assert_same(module, result(candidate), (image(),))


def test_the_factor_of_a_product_stays():
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            return self.norm(torch.addmm(self.bias, x, self.weight, beta=3, alpha=0.5))

    module, x = random_norms(Product()), torch.randn(5, 4)
    program = result(rewritten(exported(module, x), "fuse-conv-bn"))
    assert ops(program) == {"addmm": 1}
    assert_same(module, program, (x,))


def test_complex_weights_are_refused():
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1, dtype=torch.complex64)

        def forward(self, x):
            return self.conv(x.to(torch.complex64)) * 2

    module = Complex().eval()
    candidate = rewritten(exported(module, image()), "fold-affine", "fuse-conv-bn")
    assert not candidate.applications
    assert_same(module, result(candidate), (image(),))
