"""fold-affine on ATen graphs: behind and before every linear operator, and what is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402
from tests.passes.aten.test_fuse_conv_bn import random_norms  # noqa: E402


def values(*shape: int):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5)) + 0.5


class Around(nn.Module):
    """A layer with something before it and something behind it; `constant` is a buffer."""

    def __init__(self, layer, before=None, behind=None, constant=None) -> None:
        super().__init__()
        self.layer, self.before, self.behind = layer, before, behind
        self.register_buffer("constant", constant)

    def forward(self, x):
        if self.before is not None:
            x = self.before(x, self.constant)
        x = self.layer(x)
        return x if self.behind is None else self.behind(x, self.constant)


class Product(nn.Module):
    """x @ weight, by `matmul` or, of rank 2, `mm`."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns))

    def forward(self, x):
        return x @ self.weight


def folded(module, *inputs, **options):
    return rewritten(exported(module, *inputs), "fold-affine", **options)


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9), (6, 1), (4, 1)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 9, 9), (1, 6, 1, 1), (4, 1, 1)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3), (6, 1, 1, 1), (4, 1, 1, 1)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 5, 5), (6, 1, 1), (4, 1, 1)),
    "linear": (lambda: nn.Linear(4, 6, bias=False), (2, 3, 4), (6,), (1, 1, 4)),
    "matmul": (lambda: Product(4, 6), (5, 4), (6,), (4,)),
}
BEHIND = {
    "mul": lambda y, c: y * c, "add": lambda y, c: y + c, "sub": lambda y, c: y - c, "rsub": lambda y, c: c - y, "div": lambda y, c: y / c,
    "alpha": lambda y, c: torch.add(y, c, alpha=3), "mul number": lambda y, c: y * 0.3, "add number": lambda y, c: y + 2,
    "number sub": lambda y, c: 2 - y, "neg": lambda y, c: -y, "chain": lambda y, c: ((y + c) * 0.5 - 1) / c,
}  # fmt: skip


@pytest.mark.parametrize(("layer", "kind"), [*(("conv2d", kind) for kind in BEHIND), *((layer, "chain") for layer in LAYERS)])
def test_behind(layer, kind):
    make, shape, constant, _ = LAYERS[layer]
    module = Around(make(), behind=BEHIND[kind], constant=values(*constant))
    program = result(folded(module, values(*shape)))
    assert ops(program).total() == 1
    assert_same(module, program, (values(*shape),), rtol=3e-5)


@pytest.mark.parametrize(("layer", "kind"), [
    ("conv2d", "div"), ("linear", "mul number"), ("matmul", "neg"), *((name, "mul") for name in LAYERS),
])  # fmt: skip
def test_scales_before(layer, kind):
    make, shape, _, constant = LAYERS[layer]
    module = Around(make(), before=BEHIND[kind], constant=values(*constant))
    program = result(folded(module, values(*shape)))
    assert ops(program).total() == 1
    assert_same(module, program, (values(*shape),), rtol=3e-5)


@pytest.mark.parametrize(("layer", "kind"), [
    ("conv2d", "add"), ("conv3d", "sub"), ("linear", "rsub"), ("matmul", "alpha"), ("linear", "number sub"), ("conv2d", "chain"),
])  # fmt: skip
def test_shifts_before(layer, kind):
    make, shape, _, constant = LAYERS[layer]
    module = Around(make(), before=BEHIND[kind], constant=values(*constant))
    program = result(folded(module, values(*shape)))
    assert ops(program).total() == 1
    assert_same(module, program, (values(*shape),), rtol=3e-5)


@pytest.mark.parametrize(("layer", "reason"), [("conv1d", "does not reach the border"), ("transposed", "fewer terms at the border")])
def test_a_shift_before_a_border_is_refused(layer, reason):
    make, shape, _, constant = LAYERS[layer]
    module = Around(make(), before=BEHIND["add"], constant=values(*constant))
    candidate = folded(module, values(*shape))
    assert reason in refusals(candidate)[0] and not candidate.applications
    assert_same(module, result(candidate), (values(*shape),))


def test_normalization_before():
    module = random_norms(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.BatchNorm1d(54), nn.Linear(54, 3)))
    x = values(2, 4, 5, 5)
    program = result(folded(module, x))
    assert sorted(ops(program)) == ["conv2d", "linear", "view"]
    assert_same(module, program, (x,), rtol=3e-5)


@pytest.mark.parametrize(("module", "x", "reason"), [
    (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), values(2, 4, 4), "not on the axis that the product sums over"),
    (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)), values(2, 4, 5, 5), "does not reach the border"),
    (Around(nn.Conv2d(4, 4, 1), behind=lambda y, c: y * c, constant=values(5)), values(1, 4, 5, 5), "not one value a channel"),
    (Around(nn.Linear(4, 4), behind=lambda y, c: y * c, constant=values(3, 1)), values(3, 4), "not one value a channel"),
    (Around(nn.Conv2d(4, 4, 1), behind=lambda y, c: y * c, constant=values(1, 1, 4, 1, 1)), values(1, 4, 5, 5), "more dimensions"),
    (Around(nn.Conv2d(4, 4, 1), behind=lambda y, c: y * c, constant=values(4, 1, 1) / 0), values(1, 4, 5, 5), "would not be finite"),
    (Around(nn.Conv2d(4, 4, 1), behind=lambda y, c: y / c, constant=torch.zeros(4, 1, 1)), values(1, 4, 5, 5), "divides by zero"),
    (Around(nn.Linear(4, 4), before=lambda x, c: x * c, constant=values(4)), values(3, 1), "widens the input"),
    (Around(Product(4, 4), behind=lambda y, c: y + c, constant=values(4)), values(2, 3, 4), "no bias"),
    (Around(nn.Linear(4, 4), before=lambda x, c: torch.sigmoid(x) * c, constant=values(4)), values(3, 4), "the runtime fuses"),
])  # fmt: skip
def test_refusals(module, x, reason):
    module = random_norms(module)
    candidate = folded(module, x)
    assert any(reason in r for r in refusals(candidate)) and not candidate.applications
    if "finite" not in reason and "zero" not in reason:
        assert_same(module, result(candidate), (x,))


class Returned(nn.Module):
    """Values that others use too."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.layer, self.before = nn.Linear(4, 4), before

    def forward(self, x):
        y = x * 2 if self.before else self.layer(x)
        return (self.layer(y), y) if self.before else (y * 2, y)


@pytest.mark.parametrize("before", [False, True])
def test_values_that_are_outputs_are_refused(before):
    module = Returned(before)
    candidate = folded(module, values(3, 4))
    assert "also an output" in refusals(candidate)[0] and not candidate.applications
    assert_same(module, result(candidate), (values(3, 4),))


def test_a_buffer_that_changes_is_no_constant():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("scale", torch.ones(4))

        def forward(self, x):
            y = self.layer(x) * self.scale
            self.scale.mul_(1.5)
            return y

    module = Counting()
    candidate = folded(module, values(3, 4))
    assert not candidate.applications
    assert_same(module, result(candidate), (values(3, 4),), (values(3, 4),))


def test_a_scale_that_changes_the_type_is_left():
    module = Around(nn.Linear(4, 4).to(torch.float16), behind=lambda y, c: y * c, constant=values(4))
    candidate = folded(module, values(3, 4).to(torch.float16))
    assert not candidate.applications


def test_dynamic_sizes():
    module = Around(nn.Conv2d(4, 6, 3), behind=BEHIND["chain"], constant=values(6, 1, 1))
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=4, max=64)}
    program = exported(module, values(2, 4, 9, 9), dynamic=({**sizes},))
    program = result(rewritten(program, "fold-affine"))
    assert ops(program) == {"conv2d": 1}
    assert_same(module, program, (values(2, 4, 9, 9),), (values(5, 4, 7, 9),), rtol=3e-5)
