"""merge-consecutive-convs and merge-consecutive-matmuls on ATen graphs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402


def values(*shape: int):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(8))


class Products(nn.Module):
    """x @ a @ b."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(values(4, 16)), nn.Parameter(values(16, 5))

    def forward(self, x):
        return x @ self.a @ self.b


@pytest.mark.parametrize(("module", "shape"), [
    (nn.Sequential(nn.Conv2d(4, 32, 1), nn.Conv2d(32, 4, 3, stride=2)), (2, 4, 9, 9)),
    (nn.Sequential(nn.Conv2d(4, 32, 1, bias=False), nn.Conv2d(32, 4, 3, padding=1)), (2, 4, 9, 9)),
    (nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 4, 1)), (2, 4, 9, 9)),
    (nn.Sequential(nn.Conv1d(4, 32, 1), nn.Conv1d(32, 4, 1, bias=False)), (2, 4, 9)),
])  # fmt: skip
def test_convolutions(module, shape):
    program = result(rewritten(exported(module, values(*shape)), "merge-consecutive-convs"))
    assert ops(program).total() == 1
    assert_same(module, program, (values(*shape),), rtol=3e-5)


@pytest.mark.parametrize(("module", "reason"), [
    (nn.Sequential(nn.Conv2d(4, 32, 1), nn.Conv2d(32, 4, 3, padding=1)), "does not reach the border"),
    (nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 3)), "compute as much"),
    (nn.Sequential(nn.Conv2d(4, 32, 1, groups=2), nn.Conv2d(32, 4, 3)), "grouped"),
    (nn.Sequential(nn.Conv2d(4, 32, 2, padding="same"), nn.Conv2d(32, 4, 1)), "one side more"),
])  # fmt: skip
def test_convolutions_that_are_refused(module, reason):
    x = values(2, 4, 9, 9)
    candidate = rewritten(exported(module, x), "merge-consecutive-convs")
    assert reason in refusals(candidate)[0] and not candidate.applications
    assert_same(module, result(candidate), (x,))


def test_convolutions_with_something_between_are_left():
    x = values(2, 4, 9, 9)
    module = nn.Sequential(nn.Conv2d(4, 32, 1), nn.ReLU(), nn.Conv2d(32, 4, 3))
    assert not rewritten(exported(module, x), "merge-consecutive-convs").applications


@pytest.mark.parametrize(("module", "shape"), [
    (nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 5)), (2, 3, 4)),
    (nn.Sequential(nn.Linear(4, 16, bias=False), nn.Linear(16, 5)), (3, 4)),
    (nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 5, bias=False)), (4,)),
    (Products(), (3, 4)),
    (Products(), (2, 3, 4)),
])  # fmt: skip
def test_products(module, shape):
    program = result(rewritten(exported(module, values(*shape)), "merge-consecutive-matmuls"))
    assert ops(program) == {"linear": 1}
    assert_same(module, program, (values(*shape),), rtol=3e-5)


def test_products_that_cost_more_together_are_refused():
    module, x = nn.Sequential(nn.Linear(16, 2), nn.Linear(2, 16)), values(3, 16)
    candidate = rewritten(exported(module, x), "merge-consecutive-matmuls")
    assert "compute as much" in refusals(candidate)[0] and not candidate.applications


def test_work_is_bounded():
    module, x = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 5)), values(3, 4)
    candidate = rewritten(exported(module, x), "merge-consecutive-matmuls", options={"merge-consecutive-matmuls": {"max-work": 0}})
    assert "multiply-adds" in refusals(candidate)[0]


def test_products_of_computed_values_are_left():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) @ x.transpose(0, 1)

    module, x = Attention(), values(3, 4)
    candidate = rewritten(exported(module, x), "merge-consecutive-matmuls", "fold-affine")
    assert not candidate.applications and not refusals(candidate)
