"""merge-parallel-convs on ATen graphs: convolutions that are joined again."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402


class Joined(nn.Module):
    """The outputs of layers over one input, side by side."""

    def __init__(self, *layers, dim: int = 1) -> None:
        super().__init__()
        self.layers, self.dim = nn.ModuleList(layers), dim

    def forward(self, x):
        return torch.cat([layer(x) for layer in self.layers], self.dim)


def conv(outputs: int, kernel: int = 1, **options):
    return nn.Conv2d(4, outputs, kernel, padding=kernel // 2, **options)


def image(rank: int = 4):
    return torch.randn(2, 4, *[7] * (rank - 2), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(("make", "left", "rank"), [
    (lambda: Joined(conv(3), conv(5)), {"conv2d": 1}, 4),
    (lambda: Joined(conv(3, 3), conv(5, 3, bias=False), conv(2, 3), dim=-3), {"conv2d": 1}, 4),
    (lambda: Joined(*(nn.Sequential(conv(n), nn.ReLU()) for n in (2, 3))), {"conv2d": 1, "relu": 1}, 4),
    (lambda: Joined(*(nn.Sequential(conv(n), nn.LeakyReLU(0.2)) for n in (2, 3)), conv(2)), {"conv2d": 2, "leaky_relu": 1, "cat": 1}, 4),
    (lambda: Joined(conv(3), conv(5), conv(2, 3), conv(3, 3), nn.Identity()), {"conv2d": 2, "cat": 1}, 4),
    (lambda: Joined(nn.Conv1d(4, 3, 3, stride=2), nn.Conv1d(4, 5, 3, stride=2)), {"conv1d": 1}, 3),
])  # fmt: skip
def test_joined_convolutions_are_one(make, left, rank):
    module, x = make(), image(rank)
    program = result(rewritten(exported(module, x), "merge-parallel-convs"))
    assert ops(program) == left
    assert_same(module, program, (x,))


@pytest.mark.parametrize("make", [
    lambda: Joined(conv(3), conv(3), dim=0),
    lambda: Joined(conv(3), conv(5, 3)),
    lambda: Joined(conv(4, groups=2), conv(4, groups=2)),
    lambda: Joined(conv(3), nn.Sequential(nn.ReLU(), conv(3))),
    lambda: Joined(nn.Sequential(conv(3), nn.ReLU()), nn.Sequential(conv(3), nn.SiLU())),
    lambda: Joined(nn.Sequential(conv(3), nn.LeakyReLU(0.1)), nn.Sequential(conv(3), nn.LeakyReLU(0.2))),
    lambda: Joined(conv(3), nn.Identity(), conv(3)),
])  # fmt: skip
def test_what_does_not_belong_together_is_left(make):
    module = make()
    candidate = rewritten(exported(module, image()), "merge-parallel-convs")
    assert not candidate.applications
    assert_same(module, result(candidate), (image(),))


@pytest.mark.parametrize("what", ["returned", "twice"])
def test_an_output_that_is_used_elsewhere_is_left(what):
    class Used(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3), conv(3)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return (torch.cat([a, b], 1), a) if what == "returned" else torch.cat([a, b, a], 1)

    module = Used()
    candidate = rewritten(exported(module, image()), "merge-parallel-convs")
    assert not candidate.applications
    assert_same(module, result(candidate), (image(),))


@pytest.mark.parametrize(("module", "options", "reason"), [
    (Joined(nn.Conv2d(4, 3, 2, padding="same"), nn.Conv2d(4, 3, 2, padding="same")), {}, "pad one side more"),
    (Joined(*[conv(3)] * 2), {"max-growth-bytes": 10}, "has other users"),
])  # fmt: skip
def test_refusals(module, options, reason):
    candidate = rewritten(exported(module, image()), "merge-parallel-convs", options={"merge-parallel-convs": options})
    assert reason in refusals(candidate)[0] and not candidate.applications
    assert_same(module, result(candidate), (image(),))
